//! Whether a server serves: it accepts connections on its port by itself, or answers where it was
//! told to look. Apart from supervising, as others wait for it too.
//!
//! [`Readiness`] is where it is known. Whoever supervises calls [`Probe::wait`] and then
//! [`Readiness::reached`]; whoever has to wait (those who registered a server, or started one in the
//! background) takes [`Readiness::watch`] and awaits [`Watch::ready`], which may be cancelled and
//! called again. A server that is started anew is [`Readiness::lost`] until it is ready again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::listening::{Listening, listening};

/// How often it is looked for: soon at first, and never all the time.
const FIRST_STEP: Duration = Duration::from_millis(10);
const LONGEST_STEP: Duration = Duration::from_millis(250);
/// How long one answer may take. A server that loads may take a connection and say nothing.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Debug)]
pub(crate) struct Readiness(watch::Sender<bool>);

/// Of those who wait for it.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "for those who register a server")]
pub(crate) struct Watch(watch::Receiver<bool>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// It serves.
    pub(crate) fn reached(&self) {
        self.0.send_replace(true);
    }

    /// It serves no longer.
    pub(crate) fn lost(&self) {
        self.0.send_replace(false);
    }

    #[allow(dead_code, reason = "for those who register a server")]
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

#[allow(dead_code, reason = "for those who register a server")]
impl Watch {
    /// Completes when it serves; never, once it can't any more.
    pub(crate) async fn ready(&mut self) {
        if self.0.wait_for(|ready| *ready).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Where to ask whether a server is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadyUrl {
    /// On the server's own port.
    Path(String),
    /// Anywhere.
    Url(Uri),
}

impl ReadyUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let shape = "not a path, such as /health, nor an http:// URL";
        let uri: Uri = text.parse().map_err(|_| shape.to_owned())?;
        if text.starts_with('/') && uri.authority().is_none() {
            return Ok(Self::Path(text.to_owned()));
        }
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), _) => Err("only http:// can be asked".to_owned()),
            (Some("http"), Some(_)) => Ok(Self::Url(uri)),
            _ => Err(shape.to_owned()),
        }
    }
}

impl fmt::Display for ReadyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// How to see whether one server is ready.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) server: u32,
    /// Whose children the server and its orphans are.
    pub(crate) launcher: u32,
    pub(crate) port: u16,
    /// Where it was told to listen: asked where the system does not tell whose a port is.
    pub(crate) host: String,
    pub(crate) url: Option<ReadyUrl>,
}

impl Probe {
    /// What is waited for.
    pub(crate) fn awaited(&self) -> String {
        match &self.url {
            Some(url) => format!("an answer below 400 from {url}"),
            None => format!("connections to be accepted on port {}", self.port),
        }
    }

    /// Waits until it is ready. May be cancelled.
    pub(crate) async fn wait(&self) {
        let mut step = FIRST_STEP;
        while !self.look().await {
            sleep(step).await;
            step = (step * 2).min(LONGEST_STEP);
        }
    }

    /// Whether it is.
    pub(crate) async fn look(&self) -> bool {
        match &self.url {
            Some(ReadyUrl::Url(url)) => {
                let authority = url.authority().map_or("", |authority| authority.as_str());
                let host = url.host().unwrap_or_default();
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let place = (host.to_owned(), url.port_u16().unwrap_or(80));
                let path = url.path_and_query().map_or("/", |path| path.as_str());
                answers(TcpStream::connect(place), authority, path).await
            }
            Some(ReadyUrl::Path(path)) => match self.address() {
                Some(place) => {
                    let authority = format!("localhost:{}", self.port);
                    answers(place.connect(), &authority, path).await
                }
                None => false,
            },
            None => match self.address() {
                Some(Place::Seen(_)) => true,
                Some(place) => matches!(timeout(ANSWER, place.connect()).await, Ok(Ok(_))),
                None => false,
            },
        }
    }

    fn address(&self) -> Option<Place> {
        match listening(self.server, self.launcher, self.port) {
            Listening::On(address) => Some(Place::Seen(address)),
            Listening::Not => None,
            Listening::Unknown => Some(Place::Told(self.host.clone(), self.port)),
        }
    }
}

/// Where a server listens.
enum Place {
    Seen(SocketAddr),
    /// Where it was told to.
    Told(String, u16),
}

impl Place {
    async fn connect(&self) -> std::io::Result<TcpStream> {
        match self {
            Self::Told(host, port) => {
                let any = host == "0.0.0.0" || host == "::";
                let host = if any { "localhost" } else { host };
                TcpStream::connect((host, *port)).await
            }
            Self::Seen(address) => match address.ip() {
                // What listens everywhere does so on the loopback.
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
                    TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await
                }
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                    let loopback: [IpAddr; 2] =
                        [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
                    let addresses = loopback.map(|ip| SocketAddr::new(ip, address.port()));
                    TcpStream::connect(&addresses[..]).await
                }
                _ => TcpStream::connect(address).await,
            },
        }
    }
}

async fn answers(
    connecting: impl Future<Output = std::io::Result<TcpStream>>,
    authority: &str,
    path: &str,
) -> bool {
    matches!(timeout(ANSWER, ask(connecting, authority, path)).await, Ok(Some(code)) if code < 400)
}

/// The status of one answer.
async fn ask(
    connecting: impl Future<Output = std::io::Result<TcpStream>>,
    authority: &str,
    path: &str,
) -> Option<u16> {
    let stream = TokioIo::new(connecting.await.ok()?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.ok()?;
    let request = Request::get(path)
        .header("host", authority)
        .header("connection", "close")
        .header("user-agent", concat!("llmlb/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request);
    let mut answer = std::pin::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may have brought the answer, and been closed.
        _ = connection => answer.await,
    };
    answer.ok().map(|answer| answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_ask_is_a_path_or_a_url() {
        assert_eq!(
            ReadyUrl::parse("/v1/models?x=1"),
            Ok(ReadyUrl::Path("/v1/models?x=1".to_owned()))
        );
        assert!(matches!(
            ReadyUrl::parse("http://127.0.0.1:8000/health"),
            Ok(ReadyUrl::Url(_))
        ));
        for text in [
            "",
            "health",
            "https://a/",
            "ftp://a/",
            "localhost:8000",
            "a b",
        ] {
            assert!(ReadyUrl::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn those_who_wait_are_told_each_time_it_becomes_ready() {
        let readiness = Readiness::new();
        let mut watch = readiness.watch();
        readiness.reached();
        watch.ready().await;
        readiness.lost();
        let early = timeout(Duration::ZERO, watch.ready()).await;
        assert!(early.is_err());
        readiness.reached();
        watch.ready().await;
    }
}
