//! Takes connections, within the limits of the process, and lets them end in good order.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tracing::warn;

use crate::proxy::Peer;
use crate::socket::{Shared, Socket};
use crate::{Gateway, Phase};

/// How long a client may take to send a request's head, and how long it may idle before that.
const HEAD: Duration = Duration::from_secs(30);

/// How long a client may read nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(60);

/// Before trying again what the operating system refused.
const PAUSE: Duration = Duration::from_millis(20);

/// For what is about to happen anyway.
const HURRY: Duration = Duration::from_secs(1);

/// Descriptors for all that is not a connection: logs, locks, the runtime, health checks.
const RESERVE: usize = 64;

/// Connections to be had however many requests are in flight: for health checks, and to say no.
const SLACK: usize = 32;

/// Serves until told to drain, then until nothing is in flight, or told to cut off what is.
pub(crate) async fn serve(listener: TcpListener, app: Router, gateway: &Gateway) -> io::Result<()> {
    allow_for_bursts(&listener);
    let mut phase = gateway.phase.subscribe();
    let mut door = Door {
        listener,
        room: Arc::new(Semaphore::new(gateway.limits.clients)),
        clients: Arc::default(),
        warned: false,
    };
    let http = server();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = phase.changed() => break,
            accepted = door.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address, permit) = accepted;
        let peer = Peer {
            address,
            busy: Arc::default(),
            broken: Arc::default(),
            _permit: Arc::new(permit),
        };
        let socket = Socket::new(stream);
        let client = Clients::enter(&door.clients, &peer.busy, &socket);
        let app = app.clone();
        let http = http.clone();
        let phase = gateway.phase.subscribe();
        connections.spawn(connection(socket, peer, app, http, phase, client));
    }
    drop(door);
    let finish = async {
        gateway.wait_until_idle().await;
        gateway.phase.send_if_modified(|phase| {
            let drained = *phase == Phase::Draining;
            if drained {
                *phase = Phase::Closing;
            }
            drained
        });
        // Requests that are yet to be read to their end, and answers to be written.
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finish => return Ok(()),
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
    }
    connections.shutdown().await;
    gateway.wait_until_idle().await;
    Ok(())
}

fn server() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    http
}

/// Where clients come in.
struct Door {
    listener: TcpListener,
    room: Arc<Semaphore>,
    clients: Arc<Clients>,
    warned: bool,
}

impl Door {
    /// Waits for a client and for room to serve it; where there is none, idle ones make it.
    async fn accept(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) if belongs_to_the_client(&e) => continue,
                Err(e) => {
                    self.warn(&format!("Cannot accept connections: {e}"));
                    self.clients.make_room();
                    sleep(PAUSE).await;
                    continue;
                }
            };
            loop {
                if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                    return (stream, address, permit);
                }
                self.warn("No room for more connections: those that idle are closed");
                self.clients.make_room();
                if let Ok(Ok(permit)) = timeout(PAUSE, Arc::clone(&self.room).acquire_owned()).await
                {
                    return (stream, address, permit);
                }
            }
        }
    }

    /// Once is enough to know.
    fn warn(&mut self, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!("{what}");
        }
    }
}

/// The clients that are connected, in the order in which they came.
#[derive(Default)]
struct Clients(Mutex<(u64, BTreeMap<u64, Arc<Client>>)>);

struct Client {
    /// How many of its requests are in flight.
    busy: Arc<AtomicUsize>,
    socket: Arc<Socket>,
    asked_to_leave: Notify,
}

impl Clients {
    fn enter(all: &Arc<Self>, busy: &Arc<AtomicUsize>, socket: &Arc<Socket>) -> Entry {
        let client = Arc::new(Client {
            busy: Arc::clone(busy),
            socket: Arc::clone(socket),
            asked_to_leave: Notify::new(),
        });
        let mut inside = all.lock();
        inside.0 += 1;
        let number = inside.0;
        inside.1.insert(number, Arc::clone(&client));
        drop(inside);
        Entry {
            all: Arc::clone(all),
            number,
            client,
        }
    }

    /// Asks the one that came first, of those that wait for nothing, to leave.
    fn make_room(&self) {
        let inside = self.lock();
        let without_request = || {
            let clients = inside.1.values();
            clients.filter(|client| client.busy.load(Ordering::Acquire) == 0)
        };
        // One that has yet to read the end of its answer goes only if there is no other.
        let chosen = without_request().find(|client| !client.socket.is_blocked());
        if let Some(client) = chosen.or_else(|| without_request().next()) {
            client.asked_to_leave.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Client>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's, until it has left.
struct Entry {
    all: Arc<Clients>,
    number: u64,
    client: Arc<Client>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().1.remove(&self.number);
    }
}

fn belongs_to_the_client(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

async fn connection(
    socket: Arc<Socket>,
    peer: Peer,
    app: Router,
    http: http1::Builder,
    mut phase: tokio::sync::watch::Receiver<Phase>,
    entry: Entry,
) {
    let mut stream = TimeoutStream::new(Shared(Arc::clone(&socket)));
    stream.set_write_timeout(Some(STALLED));
    let broken = Arc::clone(&peer.broken);
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        hyper::service::Service::call(&app, request)
    });
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let conversation = async {
        let mut connection = pin!(connection.with_upgrades());
        let mut closing = pin!(phase.wait_for(|phase| *phase == Phase::Closing));
        let client = &entry.client;
        loop {
            tokio::select! {
                // First, so that a request that is there is seen.
                biased;
                // What goes wrong with a client is its own affair.
                _ = connection.as_mut() => return,
                () = abandoned(&socket, &client.busy) => return,
                _ = closing.as_mut() => break,
                () = async {
                    client.asked_to_leave.notified().await;
                    // By then all that has arrived is known to the runtime, and so to the connection.
                    yield_now().await;
                } => {
                    // The descriptor is needed elsewhere.
                    if client.busy.load(Ordering::Acquire) == 0 {
                        return;
                    }
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        // An answer that is still going out is waited for, the rest of a request is not.
        while timeout(HURRY, connection.as_mut()).await.is_err() {
            if client.busy.load(Ordering::Acquire) == 0 && !socket.is_blocked() {
                return;
            }
        }
    };
    conversation.await;
    // Where the end of the connection is the end of the answer, this one must look different.
    if broken.load(Ordering::Relaxed) {
        socket.abort_at_end();
    }
}

/// Waits until the client has left though its request is in flight.
async fn abandoned(socket: &Socket, busy: &AtomicUsize) {
    socket.left().await;
    // Where none is, hyper reads on, and sees it.
    while busy.load(Ordering::Acquire) == 0 {
        sleep(HURRY).await;
    }
}

/// A burst that the queue of new connections has no room for would wait a second to try again.
#[cfg(unix)]
fn allow_for_bursts(listener: &TcpListener) {
    use nix::sys::socket::{Backlog, listen};
    // It does so already, and goes on if it can't do more.
    let _ = listen(listener, Backlog::MAXCONN);
}

#[cfg(not(unix))]
fn allow_for_bursts(_: &TcpListener) {}

/// How much is served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In flight; each may hold a connection to a client and one to a backend.
    pub(crate) requests: usize,
    /// Connections of clients.
    clients: usize,
}

impl Limits {
    /// As much as is wanted, or the process may have descriptors for.
    pub(crate) fn find(wanted: usize) -> Self {
        let Some(descriptors) = raise_descriptor_limit() else {
            return Self {
                requests: wanted,
                clients: Semaphore::MAX_PERMITS,
            };
        };
        let limits = Self::within(descriptors, wanted);
        if limits.requests < wanted {
            warn!(
                "{descriptors} open files are enough for {} requests in flight, not for {wanted}",
                limits.requests
            );
        }
        limits
    }

    fn within(descriptors: usize, wanted: usize) -> Self {
        let most = (descriptors.saturating_sub(RESERVE + SLACK) / 2).max(1);
        let requests = wanted.min(most);
        let clients = descriptors.saturating_sub(RESERVE + requests);
        Self {
            requests,
            clients: clients.clamp(requests + 1, Semaphore::MAX_PERMITS),
        }
    }
}

/// To what is allowed without asking anybody.
#[cfg(unix)]
fn raise_descriptor_limit() -> Option<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).ok()
}

#[cfg(not(unix))]
fn raise_descriptor_limit() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::body::Received;

    /// Serves one client, on a clock that jumps whenever all wait for it.
    async fn served(app: Router) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (stream, address) = accepted.unwrap();
        let room = Arc::new(Semaphore::new(1));
        let peer = Peer {
            address,
            busy: Arc::default(),
            broken: Arc::default(),
            _permit: Arc::new(room.try_acquire_owned().unwrap()),
        };
        let socket = Socket::new(stream);
        let entry = Clients::enter(&Arc::default(), &peer.busy, &socket);
        tokio::spawn(async move {
            let (_sender, phase) = tokio::sync::watch::channel(Phase::Serving);
            connection(socket, peer, app, server(), phase, entry).await;
        });
        client.unwrap()
    }

    async fn rest(mut client: TcpStream) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn however_many_requests_are_wanted_there_is_room_to_say_no() {
        for descriptors in [128, 150, 256, 1024, 4096, 1 << 20] {
            for wanted in [1, 20, 1024, 1 << 24] {
                let Limits { requests, clients } = Limits::within(descriptors, wanted);
                assert!((1..=wanted).contains(&requests));
                assert!(clients >= requests + SLACK);
                assert!(clients + requests + RESERVE <= descriptors);
            }
        }
        assert_eq!(Limits::within(4096, 1024).requests, 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_its_head_is_left() {
        for begun in ["", "GET / HTTP/1.1\r\nHos"] {
            let mut client = served(Router::new()).await;
            client.write_all(begun.as_bytes()).await.unwrap();
            let before = tokio::time::Instant::now();
            assert!(!rest(client).await.contains(" 200 "));
            assert!(before.elapsed() >= HEAD, "{begun}: {:?}", before.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_its_body_is_told() {
        let read = |body: Body| async {
            match Received::read(body).await {
                Ok(_) => "all of it".to_owned(),
                Err(refusal) => refusal.status().to_string(),
            }
        };
        let mut client = served(Router::new().route("/", post(read))).await;
        let begun = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{";
        client.write_all(begun.as_bytes()).await.unwrap();
        let answer = rest(client).await;
        assert!(answer.ends_with("408 Request Timeout"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_left() {
        let endless = || async { Body::from(vec![b'x'; 64 << 20]) };
        let mut client = served(Router::new().route("/", get(endless))).await;
        let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(STALLED * 2).await;
        let mut data = Vec::new();
        let result = client.read_to_end(&mut data).await;
        let cut = result.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
        assert!(cut || data.len() < 64 << 20, "it all came");
    }
}
