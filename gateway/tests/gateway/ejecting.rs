//! Backends that answer health checks and fail requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use llmlb_gateway::Options;

use crate::support::{Backend, Gateway, Next, STREAM, answer, chunk, often, wait_until};

/// How a backend fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Reset,
    Nonsense,
    Status(&'static str),
    BrokenStream,
}

const WAYS: [Way; 6] = [
    Way::Reset,
    Way::Nonsense,
    Way::BrokenStream,
    Way::Status("500 Internal Server Error"),
    Way::Status("502 Bad Gateway"),
    Way::Status("504 Gateway Timeout"),
];

/// Fails all requests for as long as it is broken.
fn failing(way: Way, broken: &Arc<AtomicBool>) -> Backend {
    let broken = Arc::clone(broken);
    Backend::start(&["m"], move |_, wire| {
        if !broken.load(Ordering::SeqCst) {
            wire.send(answer("200 OK", "", "mended"));
            return Next::Read;
        }
        match way {
            Way::Reset => return Next::Close,
            Way::Nonsense => wire.send("nonsense\r\n\r\n"),
            Way::Status(status) => {
                wire.send(answer(status, "", ""));
                return Next::Read;
            }
            Way::BrokenStream => {
                wire.send(STREAM);
                wire.send(chunk("data"));
            }
        }
        Next::Close
    })
}

/// Answers well, after some time.
fn good() -> Backend {
    Backend::start(&["m"], |_, wire| {
        thread::sleep(Duration::from_millis(5));
        wire.send(answer("200 OK", "", "good"));
        Next::Read
    })
}

/// Sends chats from so many clients at once, so many each. Returns how many were not answered well.
fn lost(gateway: &Gateway, clients: usize, each: usize) -> usize {
    let lost = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                for _ in 0..each {
                    let mut client = gateway.connect();
                    let body = crate::support::chat("m");
                    client.send(crate::support::request(
                        "POST",
                        "/v1/chat/completions",
                        "",
                        &body,
                    ));
                    if client.message().is_none_or(|answer| answer.status() != 200) {
                        lost.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    lost.into_inner()
}

fn state(gateway: &Gateway, backend: usize) -> String {
    let health = gateway.health();
    health["backends"][backend]["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn one_of_three_that_fails_every_request_costs_a_few_and_no_more() {
    for way in WAYS {
        let broken = Arc::new(AtomicBool::new(true));
        let backends = [failing(way, &broken), good(), good()];
        let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
        gateway.wait_for_states(&["up", "up", "up"]);
        let first = lost(&gateway, 8, 25);
        // Before the others have answered anything, it is only weighed.
        assert!(first <= 25, "{way:?}: {first} of 200 were lost");
        gateway.wait_for_states(&["ejected", "up", "up"]);
        let health = gateway.health();
        assert!(health["backends"][0]["problem"].is_string(), "{health}");
        let asked = backends[0].requests().len();
        assert_eq!(lost(&gateway, 8, 10), 0, "{way:?}");
        assert_eq!(backends[0].requests().len(), asked, "{way:?}");
        let up = format!("llmlb_backend_up{{backend=\"{}\"}}", backends[0].url());
        assert_eq!(gateway.metrics()[&up], 0.0);
    }
}

#[test]
fn one_that_answers_503_costs_nothing_as_another_is_asked() {
    let broken = Arc::new(AtomicBool::new(true));
    let status = Way::Status("503 Service Unavailable");
    let backends = [failing(status, &broken), good(), good()];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    gateway.wait_for_states(&["up", "up", "up"]);
    assert_eq!(lost(&gateway, 8, 20), 0);
    // It is spared for a second each time, and in the end ejected.
    wait_until("its ejection", || {
        assert_eq!(lost(&gateway, 1, 3), 0);
        (state(&gateway, 0) == "ejected").then_some(())
    });
}

fn soon() -> Options {
    often().ejection_time(Duration::from_millis(200))
}

#[test]
fn a_trial_request_decides_whether_it_is_back() {
    let broken = Arc::new(AtomicBool::new(true));
    let backends = [failing(Way::Reset, &broken), good()];
    let gateway = Gateway::with(&backends.each_ref().map(Backend::url), soon());
    let ask = || gateway.chat("m").status();
    wait_until("its ejection", || {
        ask();
        (state(&gateway, 0) == "ejected").then_some(())
    });
    // A trial fails, and it stays out, although each probe finds it well.
    let before = backends[0].requests().len();
    wait_until("a trial", || {
        ask();
        (backends[0].requests().len() > before).then_some(())
    });
    assert_eq!(state(&gateway, 0), "ejected");
    broken.store(false, Ordering::SeqCst);
    wait_until("its return", || {
        ask();
        (state(&gateway, 0) == "up").then_some(())
    });
    assert_eq!(lost(&gateway, 4, 10), 0);
}

#[test]
fn the_last_one_is_never_ejected() {
    let broken = Arc::new(AtomicBool::new(true));
    let status = Way::Status("500 Internal Server Error");
    let alone = failing(status, &broken);
    let gateway = Gateway::before(&[alone.url()]);
    assert_eq!(lost(&gateway, 4, 10), 40);
    assert_eq!(state(&gateway, 0), "up");
    // Nor are all, when all fail at once.
    let all = [
        failing(status, &broken),
        failing(status, &broken),
        failing(status, &broken),
    ];
    let gateway = Gateway::before(&all.each_ref().map(Backend::url));
    assert_eq!(lost(&gateway, 8, 20), 160);
    gateway.wait_for_states(&["up", "up", "up"]);
    broken.store(false, Ordering::SeqCst);
    assert_eq!(lost(&gateway, 8, 5), 0);
}

#[test]
fn a_model_whose_only_server_is_ejected_is_asked_of_it_all_the_same() {
    let broken = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&broken);
    let only = Backend::start(&["m", "own"], move |_, wire| {
        if flag.load(Ordering::SeqCst) {
            return Next::Close;
        }
        wire.send(answer("200 OK", "", "only"));
        Next::Read
    });
    let other = good();
    let gateway = Gateway::before(&[only.url(), other.url()]);
    wait_until("its ejection", || {
        gateway.chat("m");
        (state(&gateway, 0) == "ejected").then_some(())
    });
    assert_eq!(gateway.chat("own").status(), 502);
    broken.store(false, Ordering::SeqCst);
    assert_eq!(gateway.chat("own").body, b"only");
    // That was as good as a trial.
    assert_eq!(state(&gateway, 0), "up");
}

#[test]
fn a_request_that_every_backend_fails_ejects_none_of_them() {
    let server = || {
        Backend::start(&["m"], |request, wire| {
            let poison = request.first_line.contains("/poison");
            let status = if poison {
                "500 Internal Server Error"
            } else {
                "200 OK"
            };
            wire.send(answer(status, "", ""));
            Next::Read
        })
    };
    let backends = [server(), server(), server()];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    gateway.wait_for_states(&["up", "up", "up"]);
    // Alone, and then among good ones.
    for good in [false, true] {
        for _ in 0..60 {
            let mut client = gateway.connect();
            assert_eq!(client.ask("POST", "/v1/poison", "", b"{}").status(), 500);
            if good {
                assert_eq!(gateway.chat("m").status(), 200);
            }
        }
        gateway.wait_for_states(&["up", "up", "up"]);
    }
}

#[test]
fn who_fails_fast_gets_no_more_for_it_where_none_may_be_ejected() {
    // The others have no answer to show yet, so that nobody knows who is at fault.
    let (gate, reached) = (
        crate::support::Gate::default(),
        Arc::new(AtomicUsize::new(0)),
    );
    let slow = || {
        let (gate, reached) = (gate.clone(), Arc::clone(&reached));
        Backend::start(&["m"], move |_, wire| {
            reached.fetch_add(1, Ordering::SeqCst);
            gate.pass();
            wire.send(answer("200 OK", "", "slow"));
            Next::Read
        })
    };
    let broken = Arc::new(AtomicBool::new(true));
    let backends = [failing(Way::Reset, &broken), slow(), slow()];
    let options = crate::support::once();
    let gateway = Gateway::with(&backends.each_ref().map(Backend::url), options);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| lost(&gateway, 1, 8)))
            .collect();
        wait_until("all clients to wait", || {
            (reached.load(Ordering::SeqCst) == 8).then_some(())
        });
        let failed = backends[0].requests().len();
        assert!(failed <= 6, "{failed} went to who fails fast");
        for _ in 0..64 {
            gate.open();
        }
        for client in clients {
            client.join().unwrap();
        }
    });
}
