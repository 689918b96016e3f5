//! Gateways that have themselves, or one another, as a backend.

use crate::support::{Backend, Gateway, often, wait_until};

#[test]
fn a_request_that_comes_back_is_refused_at_sight() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::before(&[backend.url()]);
    let headers = "Via: 1.0 cache\r\n";
    let mut client = gateway.connect();
    assert_eq!(client.ask("GET", "/v1/x", headers, b"").status(), 200);
    let requests = backend.requests();
    let [cache, mine] = requests[0].all("via")[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(cache, "1.0 cache");
    assert!(mine.starts_with("1.1 llmlb-"), "{mine}");
    for path in ["/v1/x", "/v1/chat/completions", "/health"] {
        for via in [mine.to_owned(), format!("1.0 cache, {mine}")] {
            let headers = format!("Via: {via}\r\n");
            let answer = gateway.connect().ask("GET", path, &headers, b"");
            assert_eq!(
                (answer.status(), &*answer.error_code()),
                (508, "loop_detected")
            );
        }
    }
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_backend_that_is_the_gateway_itself_is_down() {
    let other = Backend::named("other", &["m"]);
    let gateway = Gateway::before(&[other.url()]);
    let itself = format!("http://127.0.0.1:{}", gateway.port);
    gateway.now_before(&[itself, other.url()]);
    gateway.wait_for_states(&["down", "up"]);
    let problem = gateway.health()["backends"][0]["problem"].clone();
    assert!(problem.as_str().unwrap().contains("508"), "{problem}");
    assert_eq!(gateway.chat("m").body, b"other");
}

#[test]
fn a_loop_of_two_ends_where_it_closes() {
    let first = Gateway::with(&[], often());
    let second = Gateway::with(&[format!("http://127.0.0.1:{}", first.port)], often());
    first.now_before(&[format!("http://127.0.0.1:{}", second.port)]);
    first.wait_for_states(&["up"]);
    second.wait_for_states(&["up"]);
    let answer = first.get("/v1/x");
    assert_eq!(
        (answer.status(), &*answer.error_code()),
        (508, "loop_detected")
    );
    wait_until("nothing in flight", || {
        let idle = |gateway: &Gateway| gateway.health()["backends"][0]["in_flight"] == 0;
        (idle(&first) && idle(&second)).then_some(())
    });
}
