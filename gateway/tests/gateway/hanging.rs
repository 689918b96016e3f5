//! Backends that say nothing any more while they have requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    Backend, Gate, Gateway, Next, Port, answer, chat, often, request, wait_until,
};

#[test]
fn one_that_used_to_answer_while_busy_is_down_when_it_does_not() {
    let hung = Arc::new(AtomicBool::new(false));
    let looks = Arc::new(AtomicUsize::new(0));
    let (gate, seen) = (Gate::default(), Gate::default());
    // Answers until it hangs, and then takes connections, and no more.
    let backend = {
        let (hung, looks) = (Arc::clone(&hung), Arc::clone(&looks));
        let (gate, seen) = (gate.clone(), seen.clone());
        Backend::bare(Port::reserve(), move |request, wire| {
            if hung.load(Ordering::SeqCst) {
                wire.is_at_end();
                return Next::Close;
            }
            if request.first_line.contains("/health") {
                looks.fetch_add(1, Ordering::SeqCst);
            } else if request.first_line.contains("/slow") {
                seen.open();
                gate.pass();
            }
            wire.send(answer("200 OK", "", "{\"data\":[{\"id\":\"m\"}]}"));
            Next::Read
        })
    };
    let other = Backend::named("other", &["m"]);
    let gateway = Gateway::with(&[backend.url(), other.url()], often());
    gateway.wait_for_states(&["up", "up"]);
    let mut clients = Vec::new();
    // Of two in turn, one has it.
    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send(request("POST", "/slow", "", &chat("m")));
        clients.push(client);
    }
    seen.pass();
    // The next look may have begun before that; the one after it has not, and has ended when a third
    // begins.
    let before = looks.load(Ordering::SeqCst);
    wait_until("looks at it", || {
        (looks.load(Ordering::SeqCst) >= before + 3).then_some(())
    });
    hung.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    gateway.wait_for_states(&["down", "up"]);
    // One look's time, and no more than the machine takes besides.
    assert!(
        begun.elapsed() > Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    let problem = gateway.health()["backends"][0]["problem"].clone();
    assert!(problem.as_str().unwrap().contains("no answer"), "{problem}");
    for _ in 0..4 {
        assert_eq!(gateway.chat("m").body, b"other");
    }
    gate.open();
}
