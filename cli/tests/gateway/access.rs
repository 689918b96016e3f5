//! Keys, logs and metrics.

use std::process::Command;

use crate::support::{Backend, Gateway, chat, wait_until};

const KEYS: [&str; 4] = ["--api-key", "sk-gateway", "--backend-api-key", "sk-backend"];

#[test]
fn everything_but_health_asks_for_the_key() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::with(&[backend.url()], &KEYS[..2]);
    assert_eq!(gateway.get("/health").status(), 200);
    let paths = [
        "/v1/models",
        "/metrics",
        "/v1/chat/completions",
        "/api/tags",
        "/",
        "/health/x",
    ];
    for path in paths {
        for header in [
            "",
            "Authorization: Bearer sk-wrong\r\n",
            "Authorization: sk-gateway\r\n",
        ] {
            let answer = gateway.connect().ask("GET", path, header, b"");
            assert_eq!(answer.status(), 401, "{path} {header}");
            assert_eq!(answer.error_code(), "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        let header = "Authorization: Bearer sk-gateway\r\n";
        let answer = gateway.connect().ask("GET", path, header, b"");
        assert_eq!(answer.status(), 200, "{path}");
    }
    // None of those without it came through, and it stayed here.
    let requests = backend.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn backends_are_sent_their_own_key() {
    let backend = Backend::named("fine", &[]);
    let ask = |gateway: &Gateway, key: &str| {
        let header = format!("Authorization: Bearer {key}\r\n");
        gateway
            .connect()
            .ask("POST", "/v1/x", &header, &chat("m"))
            .status()
    };
    let both = Gateway::with(&[backend.url()], &KEYS);
    assert_eq!(ask(&both, "sk-gateway"), 200);
    let only = Gateway::with(&[backend.url()], &KEYS[2..]);
    assert_eq!(ask(&only, "sk-mine"), 200);
    for request in backend.requests() {
        assert_eq!(request.all("authorization"), ["Bearer sk-backend"]);
    }
}

#[test]
fn keys_and_backends_come_from_the_environment_and_nonsense_is_a_usage_error() {
    let locks = tempfile::tempdir().unwrap();
    let run = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmlb"));
        command.args(["serve", "--port", "0"]).args(args);
        command
            .env("LLMLB_LOCK_DIR", locks.path())
            .envs(environment.iter().copied());
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    for (args, environment, named) in [
        (&["--backend", "gpu2:8000"][..], &[][..], "gpu2:8000"),
        (&["--backend", "ftp://gpu2"], &[], "ftp://gpu2"),
        (
            &[],
            &[("LLMLB_BACKENDS", "http://gpu1,ftp://gpu2")],
            "ftp://gpu2",
        ),
        (&["--api-key", ""], &[], "--api-key"),
        (&[], &[("LLMLB_API_KEY", "")], "--api-key"),
        (&["--max-requests", "0"], &[], "--max-requests"),
    ] {
        let (code, stderr) = run(args, environment);
        assert_eq!(code, Some(2), "{args:?} {environment:?}");
        assert!(stderr.contains(named), "{stderr}");
    }
    let secrets = [
        ["--api-key", "sk-secret "],
        ["--backend-api-key", "sk-secret\n"],
        ["--backend", "http://me:sk-secret@gpu2"],
    ];
    for args in secrets {
        let (code, stderr) = run(&args, &[]);
        assert_eq!(code, Some(2), "{args:?}");
        assert!(stderr.contains(args[0]), "{stderr}");
        assert!(!stderr.contains("sk-secret"), "{stderr}");
    }
    let (_, stderr) = run(&["--help"], &[("LLMLB_API_KEY", "sk-secret")]);
    assert!(!stderr.contains("sk-secret"));
}

#[test]
fn only_an_open_door_is_warned_of() {
    let warnings = |args: &[&str]| {
        let gateway = Gateway::with(&[], args);
        let log = gateway.log();
        log.iter().filter(|line| line.contains("--api-key")).count()
    };
    assert_eq!(warnings(&[]), 0);
    assert_eq!(warnings(&["--host", "0.0.0.0"]), 1);
    assert_eq!(warnings(&["--host", "0.0.0.0", "--api-key", "sk-1"]), 0);
}

#[test]
fn requests_are_logged_without_what_is_secret() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::logging("debug", &[backend.url()]);
    let answer = gateway.connect().ask(
        "POST",
        "/v1/secrets?key=sk-query",
        "Authorization: Bearer sk-header\r\n",
        b"{\"prompt\":\"sk-body\"}",
    );
    assert_eq!(answer.status(), 200);
    let line = gateway.expect_log("POST /v1/secrets 200");
    assert!(line.contains(&backend.url()), "{line}");
    for line in gateway.log() {
        assert!(!line.contains("sk-"), "{line}");
    }
}

#[test]
fn metrics_count_what_happened() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::before(&[backend.url()]);
    for _ in 0..3 {
        assert_eq!(gateway.chat("m").status(), 200);
    }
    assert_eq!(gateway.chat("other").status(), 404);
    let url = backend.url();
    let sample = |name: &str, labels: &str| {
        let metrics = gateway.metrics();
        metrics.get(&format!("{name}{{{labels}}}")).copied()
    };
    let labels = format!("backend=\"{url}\"");
    // A request is counted when its answer has gone out, which the client may see earlier.
    wait_until("three requests", || {
        let code = format!("{labels},code=\"200\"");
        (sample("llmlb_requests_total", &code) == Some(3.0)).then_some(())
    });
    let refused = sample("llmlb_requests_total", "backend=\"\",code=\"404\"");
    assert_eq!(refused, Some(1.0));
    for name in [
        "llmlb_time_to_first_byte_seconds",
        "llmlb_request_duration_seconds",
    ] {
        assert_eq!(
            sample(&format!("{name}_count"), &labels),
            Some(3.0),
            "{name}"
        );
        assert!(
            sample(&format!("{name}_sum"), &labels) > Some(0.0),
            "{name}"
        );
    }
    assert_eq!(sample("llmlb_requests_in_flight", &labels), Some(0.0));
    assert_eq!(sample("llmlb_backend_up", &labels), Some(1.0));
}
