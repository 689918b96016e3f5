//! Certificates, and an etcd that asks for them.

use std::path::{Path, PathBuf};

use llmlb_tests::certificates::Authority;

/// A CA, and a certificate by it for 127.0.0.1 that serves and identifies.
pub fn certificates(dir: &Path, name: &str) -> [PathBuf; 3] {
    let authority = Authority::new();
    let (cert, key) = authority.certify(&["127.0.0.1", "localhost"]);
    let write = |kind: &str, pem: &str| {
        let path = dir.join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, pem).expect("target/tmp can be written");
        path
    };
    [
        write("ca", &authority.pem),
        write("cert", &cert),
        write("key", &key),
    ]
}

/// What tells etcd to prove with these who it is, and to have its clients do so.
pub fn client_certificates(ca: &Path, cert: &Path, key: &Path) -> [String; 4] {
    let arg = |name: &str, path: &Path| format!("--{name}={}", path.display());
    [
        arg("cert-file", cert),
        arg("key-file", key),
        arg("trusted-ca-file", ca),
        "--client-cert-auth".into(),
    ]
}
