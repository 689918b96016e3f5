//! Certificates: what clients are shown, and what backends are to show.
//!
//! Apart from connections, which are the same with and without. rustls speaks TLS 1.2 and 1.3, and
//! nothing older.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const HTTP: &[u8] = b"http/1.1";

/// Why a certificate or a key can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl From<rustls::Error> for TlsError {
    fn from(e: rustls::Error) -> Self {
        Self(match e {
            rustls::Error::InconsistentKeys(_) => "the key is not the certificate's".to_owned(),
            e => e.to_string(),
        })
    }
}

/// A certificate and its key, as a server or a client shows it.
fn identity(certificates: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = chain(certificates)?;
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|_| TlsError("there is no private key in it, in PEM".to_owned()))?;
    let identity = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
    Ok(Arc::new(identity))
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|e| TlsError(format!("it is no PEM: {e}")))?;
    if chain.is_empty() {
        let problem = "there is no certificate in it, in PEM".to_owned();
        return Err(TlsError(problem));
    }
    Ok(chain)
}

/// What clients are shown. Clones are the same: what one is told to show, all do.
#[derive(Clone)]
pub struct ServerTls {
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerTls {
    /// Shows this chain of certificates, the server's own first. Both are PEM.
    ///
    /// # Errors
    ///
    /// What is no certificate or key, or does not belong together.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let shown = Arc::new(Shown(ArcSwap::new(identity(certificates, key)?)));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let resolver: Arc<dyn ResolvesServerCert> = shown.clone();
        let mut config = config.with_cert_resolver(resolver);
        config.alpn_protocols = vec![HTTP.to_vec()];
        // Who comes back need not be known here: it brings along what was agreed on.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self {
            shown,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Shows another chain from the next connection on.
    ///
    /// # Errors
    ///
    /// As those of [`new`](Self::new); it goes on with what it has.
    pub fn replace(&self, certificates: &[u8], key: &[u8]) -> Result<(), TlsError> {
        self.shown.0.store(identity(certificates, key)?);
        Ok(())
    }

    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<server::TlsStream<S>> {
        self.acceptor.accept(stream).await
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is nobody's business.
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// How backends are spoken to that speak TLS.
#[derive(Clone, Default)]
pub struct BackendTls {
    /// Those of the system, where there are none.
    roots: Option<Arc<RootCertStore>>,
    identity: Option<Arc<CertifiedKey>>,
    /// Put together for the first that is spoken to: to read the system's takes its time.
    connector: Arc<OnceLock<Result<TlsConnector, String>>>,
}

impl BackendTls {
    /// Takes backends for whom they say they are if one that the system trusts vouches for them.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has one of these certificates vouch for them, in PEM, and none of the system's.
    ///
    /// # Errors
    ///
    /// What is no certificate.
    pub fn trusting(self, roots: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for certificate in chain(roots)? {
            store.add(certificate)?;
        }
        Ok(Self {
            roots: Some(Arc::new(store)),
            connector: Arc::default(),
            ..self
        })
    }

    /// Shows this chain of certificates to those that ask for one. Both are PEM.
    ///
    /// # Errors
    ///
    /// What is no certificate or key, or does not belong together.
    pub fn showing(self, certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self {
            identity: Some(identity(certificates, key)?),
            connector: Arc::default(),
            ..self
        })
    }

    pub(crate) async fn connect(
        &self,
        name: ServerName<'static>,
        stream: TcpStream,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let connector = self.connector.get_or_init(|| self.connector());
        let connector = connector
            .as_ref()
            .map_err(|problem| io::Error::other(problem.as_str()))?;
        connector.connect(name, stream).await.map_err(in_words)
    }

    fn connector(&self) -> Result<TlsConnector, String> {
        let roots = match &self.roots {
            Some(roots) => Arc::clone(roots),
            None => Arc::new(of_the_system()?),
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some(identity) => {
                let shown = SingleCertAndKey::from(CertifiedKey::clone(identity));
                config.with_client_cert_resolver(Arc::new(shown))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// What was wrong in a handshake: rustls tells of many a certificate in the words of its source.
fn in_words(e: io::Error) -> io::Error {
    let inner = e.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(problem)) = inner else {
        return e;
    };
    io::Error::new(e.kind(), TlsError(of_certificate(problem)))
}

fn of_certificate(problem: &CertificateError) -> String {
    use CertificateError as E;
    let what = match problem {
        // A signature that is not by whom it names comes to the same.
        E::UnknownIssuer
        | E::BadSignature
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            return "nobody who is trusted here vouches for its certificate (see --backend-ca)"
                .to_owned();
        }
        E::Expired => "it has expired".to_owned(),
        E::NotValidYet => "it is not valid yet".to_owned(),
        E::Revoked => "it was revoked".to_owned(),
        E::NotValidForName => "it is for another name".to_owned(),
        E::BadEncoding => "it is malformed".to_owned(),
        E::UnsupportedSignatureAlgorithmContext { .. } => {
            "how it is signed is not supported".to_owned()
        }
        E::Other(e) if e.to_string().contains("CaUsedAsEndEntity") => {
            "it is an authority's own, and no server's".to_owned()
        }
        problem => problem.to_string(),
    };
    // What is left of others is their name, without the data that follows.
    let what = what.split(" { ").next().unwrap_or_default();
    format!("its certificate is not to be trusted: {what}")
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTls").finish_non_exhaustive()
    }
}

fn of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first();
        let why = why.map(|e| format!(": {e}")).unwrap_or_default();
        return Err(format!(
            "this system trusts nobody's certificates (say who is to be trusted){why}"
        ));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_in_words() {
        let told = |problem: CertificateError| {
            let e = rustls::Error::InvalidCertificate(problem);
            in_words(io::Error::new(io::ErrorKind::InvalidData, e)).to_string()
        };
        let signed_otherwise = CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id: vec![6, 8, 42],
            public_key_algorithm_id: vec![6, 7, 42],
        };
        for problem in [CertificateError::UnknownIssuer, signed_otherwise] {
            let said = told(problem);
            assert!(said.ends_with("(see --backend-ca)"), "{said}");
        }
        let unsupported = CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id: vec![1],
            supported_algorithms: Vec::new(),
        };
        let said = told(unsupported);
        assert!(
            said.ends_with("how it is signed is not supported"),
            "{said}"
        );
        let expired = told(CertificateError::Expired);
        assert!(expired.contains("it has expired"), "{expired}");
    }
}
