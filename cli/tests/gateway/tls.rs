//! Certificates from files, to clients and to backends.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use llmlb_tests::certificates::{Authority, Identity};
use llmlb_tests::model_server::Backend;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Gateway, put, wait_until};

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        put(&path, text);
        path.to_str().unwrap().to_owned()
    }

    /// What tells a gateway to show this.
    fn show(&self, (certificate, key): &Identity) -> [String; 4] {
        let certificate = self.put("certificate.pem", certificate);
        let key = self.put("key.pem", key);
        ["--tls-cert".into(), certificate, "--tls-key".into(), key]
    }
}

/// In front of one that speaks TLS, and trusts these.
fn before(behind: &Gateway, files: &Files, trusted: &Authority) -> Gateway {
    let roots = files.put("roots.pem", &trusted.pem);
    let url = format!("https://localhost:{}", behind.port);
    Gateway::with(&[url], &["--backend-ca", &roots])
}

#[test]
fn two_of_them_speak_tls_and_another_certificate_is_shown_when_it_comes() {
    let files = Files::new();
    let (first, second) = (Authority::new(), Authority::new());
    let backend = Backend::named("b", &["m"]);
    let shown = files.show(&first.certify(&["localhost"]));
    let args = shown.each_ref().map(String::as_str);
    let behind = Gateway::with(&[backend.url()], &args);
    let front = before(&behind, &files, &first);
    assert_eq!(front.chat("m").body, b"b");
    // One that does not trust it tells why.
    let stranger = before(&behind, &files, &second);
    assert_ne!(stranger.chat("m").status(), 200);

    let next = second.certify(&["localhost"]);
    files.put("key.pem", &next.1);
    behind.signal(Signal::SIGHUP);
    behind.expect_log("the key is not the certificate's; clients are shown what was there before");
    assert_eq!(before(&behind, &files, &first).chat("m").status(), 200);
    // Without a signal.
    files.put("certificate.pem", &next.0);
    behind.expect_log("certificate.pem is shown from now on");
    assert_eq!(before(&behind, &files, &second).chat("m").body, b"b");
}

#[test]
fn a_file_that_is_never_read_to_its_end_keeps_nobody_from_ending() {
    let files = Files::new();
    let shown = files.show(&Authority::new().certify(&["localhost"]));
    let args = shown.each_ref().map(String::as_str);
    let mut gateway = Gateway::with(&[], &args);
    let path = files.0.path().join("key.pem");
    std::fs::remove_file(&path).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&path, mode).unwrap();
    gateway.signal(Signal::SIGHUP);
    // There is no writing to it before somebody reads; and nothing is written.
    let writer = wait_until("it to be in the midst of reading", || {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        options.open(&path).ok()
    });
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.wait().success());
    drop(writer);
}

#[test]
fn what_cannot_be_shown_or_trusted_is_refused_at_the_start() {
    let files = Files::new();
    let authority = Authority::new();
    let good = authority.certify(&["localhost"]);
    let (certificate, key) = (files.put("c.pem", &good.0), files.put("k.pem", &good.1));
    let other = files.put("o.pem", &authority.certify(&["localhost"]).1);
    let missing = files.0.path().join("missing.pem");
    let missing = missing.to_str().unwrap();
    for (args, problem) in [
        (vec!["--tls-cert", &certificate], "--tls-key <PATH>"),
        (
            vec!["--tls-cert", missing, "--tls-key", &key],
            "missing.pem: No such file",
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &other],
            "o.pem: the key is not the certificate's",
        ),
        (
            vec!["--tls-cert", &key, "--tls-key", &key],
            "there is no certificate in it, in PEM",
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &certificate],
            "there is no private key in it, in PEM",
        ),
        (
            vec!["--backend-ca", &key],
            "k.pem: there is no certificate in it",
        ),
        (
            vec!["--backend-cert", &certificate, "--backend-cert-key", &other],
            "the key is not the certificate's",
        ),
    ] {
        for check in [&[][..], &["--check"]] {
            let output = Gateway::output(&[&args, check, &["--port", "0"]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(2) && said.contains(problem),
                "{said}"
            );
        }
    }
}
