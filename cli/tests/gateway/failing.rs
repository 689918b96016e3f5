//! Backends that fail, as the program tells of them.

use crate::support::{Backend, Gateway, Next, Port, answer};

#[test]
fn backends_fall_and_rise() {
    let port = Port::reserve();
    let always = Backend::named("always", &[]);
    let gateway = Gateway::before(&[port.url(), always.url()]);
    gateway.wait_for_states(&["down", "up"]);
    let problem = gateway.health()["backends"][0]["problem"].clone();
    assert!(problem.as_str().unwrap().contains("refused"), "{problem}");
    assert_eq!(gateway.get("/health").status(), 200);
    let mut late = Backend::start_at(port, &["late"], |_, wire| {
        wire.send(answer("200 OK", "", "late"));
        Next::Read
    });
    gateway.wait_for_states(&["up", "up"]);
    assert_eq!(gateway.chat("late").body, b"late");
    late.stop();
    gateway.wait_for_states(&["down", "up"]);
    gateway.expect_log("is down");
}

#[test]
fn without_backends_the_error_names_the_flag() {
    let gateway = Gateway::before(&[]);
    let answer = gateway.chat("m");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.error_code(), "no_backends");
    assert!(
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--backend")
    );
    let health = gateway.get("/health");
    assert_eq!(health.status(), 200);
    assert!(
        health.json()["hint"]
            .as_str()
            .unwrap()
            .contains("--backend")
    );
    assert_eq!(gateway.get("/v1/models").status(), 503);
    assert_eq!(gateway.get("/nothing").status(), 404);
}
