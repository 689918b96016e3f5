//! Certificates, and an etcd that asks for them.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// A CA, and a certificate by it for 127.0.0.1 that serves and identifies.
pub fn certificates(dir: &Path, name: &str) -> [PathBuf; 3] {
    let ca_key = KeyPair::generate().expect("a certificate can be made");
    let mut params = CertificateParams::new(Vec::new()).expect("a certificate can be made");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params
        .self_signed(&ca_key)
        .expect("a certificate can be made");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a certificate can be made");
    let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()])
        .expect("a certificate can be made");
    let cert = params
        .signed_by(&key, &issuer)
        .expect("a certificate can be made");
    let write = |kind: &str, pem: String| {
        let path = dir.join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, pem).expect("target/tmp can be written");
        path
    };
    [
        write("ca", ca.pem()),
        write("cert", cert.pem()),
        write("key", key.serialize_pem()),
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
