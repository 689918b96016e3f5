//! What is sent again, and what never is.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::{Backend, Gateway, Next, answer, chat, once, wait_until};

/// Takes a second request on a connection, holds it for so long, and dies with it unanswered.
fn second_one_dies(held: Duration) -> Backend {
    let answered = Mutex::new(std::collections::HashSet::new());
    Backend::start(&[], move |_, wire| {
        if !answered.lock().unwrap().insert(thread::current().id()) {
            thread::sleep(held);
            return Next::Close;
        }
        wire.send(answer("200 OK", "", "fresh"));
        Next::Read
    })
}

#[test]
fn a_request_that_was_held_before_its_connection_died_is_not_sent_again() {
    let backend = second_one_dies(Duration::from_millis(1500));
    let gateway = Gateway::with(&[backend.url()], once());
    assert_eq!(gateway.chat("m").status(), 200);
    wait_until("the connection to be used again", || {
        let before = backend.requests().len();
        let answer = gateway.chat("m");
        assert_eq!(backend.requests().len(), before + 1, "sent again");
        (answer.status() == 502).then(|| {
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        })
    });
}

#[test]
fn what_makes_a_job_or_a_file_is_never_sent_again() {
    let backend = second_one_dies(Duration::ZERO);
    let gateway = Gateway::with(&[backend.url()], once());
    for path in [
        "/v1/batches",
        "/v1/files",
        "/v1/fine_tuning/jobs",
        "/v1/unknown",
    ] {
        assert_eq!(gateway.chat("m").status(), 200);
        let before = backend.requests().len();
        let answer = gateway.connect().ask("POST", path, "", b"{}");
        assert_eq!(answer.status(), 200, "on a connection of its own");
        assert_eq!(backend.requests().len(), before + 1, "{path}");
    }
}

/// Says that it has enough.
fn full(status: &'static str, headers: &'static str) -> Backend {
    Backend::start(&["m"], move |_, wire| {
        wire.send(answer(status, headers, "full"));
        Next::Read
    })
}

#[test]
fn who_has_enough_is_left_for_another_and_spared_for_a_while() {
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let full = full(status, "Retry-After: 30\r\n");
        let other = Backend::named("other", &["m"]);
        let gateway = Gateway::with(&[full.url(), other.url()], once());
        for path in ["/v1/chat/completions", "/v1/batches"] {
            for _ in 0..4 {
                let answer = gateway.connect().ask("POST", path, "", &chat("m"));
                assert_eq!((answer.status(), &*answer.body), (200, &b"other"[..]));
            }
        }
        assert_eq!(full.requests().len(), 1, "{status}");
        assert_eq!(other.requests().len(), 8);
        assert!(other.requests().iter().all(|r| r.body == chat("m")));
    }
}

#[test]
fn when_all_have_enough_one_says_so() {
    let backends = [
        full("429 Too Many Requests", "Retry-After: 7\r\n"),
        full("429 Too Many Requests", "Retry-After: 7\r\n"),
        full("429 Too Many Requests", "Retry-After: 7\r\n"),
    ];
    let gateway = Gateway::with(&backends.each_ref().map(Backend::url), once());
    for sent in [2, 3, 4] {
        let answer = gateway.chat("m");
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.header("retry-after"), Some("7"));
        // To one other, and to none that has said the same.
        let total: usize = backends.iter().map(|b| b.requests().len()).sum();
        assert!(total <= sent, "{total} of {sent}");
    }
    // Nothing is left in flight where it was asked first.
    gateway.wait_for_in_flight(0, 0);
    gateway.wait_for_in_flight(1, 0);
    gateway.wait_for_in_flight(2, 0);
}

#[test]
fn a_body_that_is_not_kept_is_not_sent_to_another() {
    let seen = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&seen);
    let full = Backend::start(&["m"], move |request, wire| {
        *counted.lock().unwrap() += request.body.len();
        wire.send(answer("429 Too Many Requests", "", "full"));
        Next::Read
    });
    let gateway = Gateway::with(&[full.url()], once());
    let other = Backend::named("other", &["m"]);
    gateway.now_before(&[full.url(), other.url()]);
    gateway.wait_for_states(&["up", "up"]);
    let big = vec![b'x'; 9 << 20];
    let mut statuses: Vec<_> = (0..2)
        .map(|_| gateway.connect().ask("POST", "/v1/x", "", &big).status())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    assert_eq!(*seen.lock().unwrap(), big.len());
}
