//! Backends that fail, as the program tells of them.

use std::process::Command;

use crate::support::{Backend, Gateway, Next, Port, answer, wait_until};

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

#[test]
fn a_warning_says_which_backend_is_ejected_why_and_for_how_long() {
    let broken = Backend::start(&["m"], |_, wire| {
        wire.send(answer("500 Internal Server Error", "", ""));
        Next::Read
    });
    let good = Backend::named("good", &["m"]);
    let gateway = Gateway::before(&[broken.url(), good.url()]);
    let mut client = gateway.connect();
    let mut asked = 0;
    wait_until("its ejection", || {
        // A conversation of its own each time: one stays where it has been.
        asked += 1;
        let body = format!(r#"{{"model":"m","prompt":"{asked}"}}"#);
        client.ask("POST", "/v1/completions", "", body.as_bytes());
        (gateway.health()["backends"][0]["state"] == "ejected").then_some(())
    });
    let line = gateway.expect_log("is ejected");
    assert!(line.contains("WARN"), "{line}");
    for told in [
        &*broken.url(),
        "for 10s",
        "3 requests in a row",
        "500 Internal",
    ] {
        assert!(line.contains(told), "{told}: {line}");
    }
}

#[test]
fn its_own_address_is_refused_as_a_backend() {
    for (host, backend) in [
        ("127.0.0.1", "http://127.0.0.1:{}"),
        ("127.0.0.1", "http://localhost:{}/v1"),
        ("0.0.0.0", "http://127.0.0.1:{}"),
    ] {
        let locks = tempfile::tempdir().unwrap();
        let port = Port::reserve().url().rsplit(':').next().unwrap().to_owned();
        let url = backend.replace("{}", &port);
        let output = Command::new(env!("CARGO_BIN_EXE_llmlb"))
            .args(["serve", "--host", host, "--port", &port, "--backend", &url])
            .env("LLMLB_LOCK_DIR", locks.path())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains("is this very server") && told.contains(&port),
            "{told}"
        );
        assert_eq!(std::fs::read_dir(locks.path()).unwrap().count(), 0);
    }
}
