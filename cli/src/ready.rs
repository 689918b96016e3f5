//! Whether a server serves: it accepts connections on its port by itself, or answers where it was
//! told to look. Apart from supervising, as others wait for it too.
//!
//! [`Readiness`] is where it is known. Whoever supervises calls [`Probe::wait`] and then
//! [`Readiness::reached`]; whoever has to wait (those who registered a server, or started one in the
//! background) takes [`Readiness::watch`] and awaits [`Watch::ready`], which may be cancelled and
//! called again. A server that is started anew is [`Readiness::lost`] until it is ready again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::insight::Insight;
#[cfg(target_os = "linux")]
use crate::listening::is_stopped;
use crate::listening::{Listening, listening};

/// How often it is looked for: soon at first, and never all the time.
const FIRST_STEP: Duration = Duration::from_millis(10);
const LONGEST_STEP: Duration = Duration::from_millis(250);
/// How long one answer may take. A server that loads may take a connection and say nothing.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Debug)]
pub(crate) struct Readiness {
    /// The server's PID.
    ready: watch::Sender<Option<u32>>,
    /// Whether it was asked to end: what answers still is not to be counted on.
    leaving: AtomicBool,
    /// Who was ready then; 0: nobody.
    left: AtomicU32,
    /// Those who have told others of it.
    told: watch::Sender<usize>,
    /// Whether nothing of it runs any more.
    ended: watch::Sender<bool>,
}

/// Of those who wait for it.
#[cfg_attr(not(unix), allow(dead_code, reason = "nobody waits for it there"))]
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    ready: watch::Receiver<Option<u32>>,
    told: watch::Sender<usize>,
    ended: watch::Receiver<bool>,
}

/// Stands for others that were told of a server: it may end when they know of that too.
#[cfg_attr(not(unix), allow(dead_code, reason = "nobody waits for it there"))]
#[derive(Debug)]
pub(crate) struct Standing(watch::Sender<usize>);

#[cfg_attr(not(unix), allow(dead_code, reason = "nobody waits for it there"))]
impl Standing {
    fn new(told: &watch::Sender<usize>) -> Self {
        told.send_modify(|count| *count += 1);
        Self(told.clone())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self {
            ready: watch::Sender::new(None),
            leaving: AtomicBool::new(false),
            left: AtomicU32::new(0),
            told: watch::Sender::new(0),
            ended: watch::Sender::new(false),
        }
    }

    /// The server with this PID serves.
    pub(crate) fn reached(&self, server: u32) {
        if self.leaving.load(Ordering::Relaxed) {
            self.left.store(server, Ordering::Relaxed);
        } else {
            self.ready.send_replace(Some(server));
        }
    }

    /// It serves no longer.
    pub(crate) fn lost(&self) {
        self.ready.send_replace(None);
    }

    /// It was asked to end.
    #[cfg_attr(not(unix), allow(dead_code, reason = "it ends at once there"))]
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(server) = self.ready.send_replace(None) {
            self.left.store(server, Ordering::Relaxed);
        }
    }

    /// It was not asked to end after all.
    #[cfg_attr(not(unix), allow(dead_code, reason = "it ends at once there"))]
    pub(crate) fn rejoin(&self) {
        self.leaving.store(false, Ordering::Relaxed);
        let server = self.left.swap(0, Ordering::Relaxed);
        if server != 0 {
            self.reached(server);
        }
    }

    /// It was started anew.
    #[cfg_attr(not(unix), allow(dead_code, reason = "it is started once there"))]
    pub(crate) fn begin(&self) {
        self.leaving.store(false, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
        self.ended.send_replace(false);
    }

    /// Nothing of it runs any more.
    #[cfg_attr(not(unix), allow(dead_code, reason = "it ends at once there"))]
    pub(crate) fn ended(&self) {
        self.lost();
        self.ended.send_replace(true);
    }

    #[cfg_attr(not(unix), allow(dead_code, reason = "nobody waits for it there"))]
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            ready: self.ready.subscribe(),
            told: self.told.clone(),
            ended: self.ended.subscribe(),
        }
    }

    /// It has ended; completes when nobody elsewhere takes it for anything else any more.
    pub(crate) async fn untold(&self) {
        self.ended();
        // Let those who watch see it.
        tokio::task::yield_now().await;
        let _ = self.told.subscribe().wait_for(|count| *count == 0).await;
    }
}

#[cfg_attr(not(unix), allow(dead_code, reason = "nobody waits for it there"))]
impl Watch {
    /// Completes when it serves, with its PID; never, once it can't any more.
    pub(crate) async fn ready(&mut self) -> (u32, Standing) {
        let ready = match self.ready.wait_for(Option::is_some).await {
            Ok(ready) => *ready,
            Err(_) => None,
        };
        match ready {
            Some(pid) => (pid, Standing::new(&self.told)),
            None => std::future::pending().await,
        }
    }

    /// Completes when it serves no longer.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
    pub(crate) async fn lost(&mut self) {
        let _ = self.ready.wait_for(Option::is_none).await;
    }

    /// Completes when nothing of it runs any more, or it serves again.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
    pub(crate) async fn ended(&mut self) {
        tokio::select! {
            _ = self.ended.wait_for(|ended| *ended) => {}
            _ = self.ready.wait_for(Option::is_some) => {}
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

    /// Whether it can be told to be healthy, once it is ready: where no URL says so, it is not
    /// stopped, and its port takes a connection, which is closed at once.
    #[cfg(target_os = "linux")]
    pub(crate) async fn is_healthy(&self) -> bool {
        if self.url.is_some() {
            return self.look().await;
        }
        if is_stopped(self.server, self.launcher, self.port, &Insight::default()) {
            return false;
        }
        match self.address() {
            Some(place) => matches!(timeout(ANSWER, place.connect()).await, Ok(Ok(_))),
            None => false,
        }
    }

    /// systemd alone asks.
    #[cfg(not(target_os = "linux"))]
    pub(crate) async fn is_healthy(&self) -> bool {
        self.look().await
    }

    /// What it answers with 200 to a GET of this path on its own port, if that is no longer than
    /// `most`.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
    pub(crate) async fn get(&self, path: &str, most: usize) -> Option<Bytes> {
        let place = self.address()?;
        let authority = format!("localhost:{}", self.port);
        let answer = async {
            let (code, body) = ask(place.connect(), &authority, path, most).await?;
            body.filter(|_| code == 200)
        };
        timeout(ANSWER, answer).await.ok()?
    }

    fn address(&self) -> Option<Place> {
        match listening(self.server, self.launcher, self.port, &Insight::default()) {
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
    let answer = timeout(ANSWER, ask(connecting, authority, path, 0)).await;
    matches!(answer, Ok(Some((code, _))) if code < 400)
}

/// The status of one answer, and what it says if that is no longer than `most`.
async fn ask(
    connecting: impl Future<Output = std::io::Result<TcpStream>>,
    authority: &str,
    path: &str,
    most: usize,
) -> Option<(u16, Option<Bytes>)> {
    let stream = TokioIo::new(connecting.await.ok()?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.ok()?;
    let request = Request::get(path)
        .header("host", authority)
        .header("connection", "close")
        .header("user-agent", concat!("llmlb/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = async {
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        if most == 0 {
            return Some((status, None));
        }
        let body = Limited::new(answer.into_body(), most).collect().await;
        Some((status, body.ok().map(Collected::to_bytes)))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // It may have brought the answer, and been closed.
        _ = connection => answer.await,
    }
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
        readiness.reached(7);
        assert_eq!(watch.ready().await.0, 7);
        readiness.lost();
        let early = timeout(Duration::ZERO, watch.ready()).await;
        assert!(early.is_err());
        readiness.reached(7);
        assert_eq!(watch.ready().await.0, 7);
    }
}
