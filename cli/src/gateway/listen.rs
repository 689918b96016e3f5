//! Takes connections, within the limits of the process, and lets them end in good order.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tracing::warn;

use super::proxy::Peer;
use super::{Gateway, Phase};

/// How long a client may take to send a request's head, and how long it may idle before that.
const HEAD: Duration = Duration::from_secs(30);

/// How long a client may read nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(60);

/// Before trying again what the operating system refused.
const PAUSE: Duration = Duration::from_millis(20);

/// Descriptors for all that is not a connection: logs, locks, the runtime, health checks.
const RESERVE: usize = 64;

/// Serves until told to drain, then until nothing is in flight, or told to cut off what is.
pub(super) async fn serve(listener: TcpListener, app: Router, gateway: &Gateway) -> io::Result<()> {
    allow_for_bursts(&listener);
    let mut phase = gateway.phase.subscribe();
    let room = Arc::new(Semaphore::new(room_for_clients(gateway)));
    let pressure = Arc::new(Notify::new());
    let http = server();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = phase.changed() => break,
            accepted = accept(&listener, &room, &pressure) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address, permit) = accepted;
        let app = app.clone();
        let http = http.clone();
        let pressure = Arc::clone(&pressure);
        let phase = gateway.phase.subscribe();
        connections.spawn(async move {
            connection(stream, address, app, http, phase, &pressure).await;
            drop(permit);
        });
    }
    drop(listener);
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

/// Waits for a client and for room to serve it; where there is none, idle ones make it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    pressure: &Notify,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let mut warned = false;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) if belongs_to_the_client(&e) => continue,
            Err(e) => {
                if !warned {
                    warn!("Cannot accept connections: {e}");
                    warned = true;
                }
                pressure.notify_one();
                sleep(PAUSE).await;
                continue;
            }
        };
        loop {
            if let Ok(permit) = Arc::clone(room).try_acquire_owned() {
                return (stream, address, permit);
            }
            // The one that has waited longest goes first.
            pressure.notify_one();
            if let Ok(Ok(permit)) = timeout(PAUSE, Arc::clone(room).acquire_owned()).await {
                return (stream, address, permit);
            }
        }
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
    stream: TcpStream,
    address: SocketAddr,
    app: Router,
    http: http1::Builder,
    mut phase: tokio::sync::watch::Receiver<Phase>,
    pressure: &Notify,
) {
    // Chunks are sent as they come.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALLED));
    let peer = Peer {
        address,
        busy: Arc::new(AtomicUsize::new(0)),
    };
    let busy = Arc::clone(&peer.busy);
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        hyper::service::Service::call(&app, request)
    });
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection.with_upgrades());
    let closing = phase.wait_for(|phase| *phase == Phase::Closing);
    tokio::select! {
        // What goes wrong with a client is its own affair.
        _ = connection.as_mut() => return,
        _ = closing => {}
        () = pressure.notified() => {
            // The descriptor is needed elsewhere.
            if busy.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _: Result<(), _> = connection.await;
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

/// How many client connections fit, beside those to backends.
fn room_for_clients(gateway: &Gateway) -> usize {
    let Some(descriptors) = raise_descriptor_limit() else {
        return Semaphore::MAX_PERMITS;
    };
    let upstream = gateway.options.max_requests.min(descriptors / 2);
    let clients = descriptors.saturating_sub(upstream + RESERVE);
    clients.clamp(1, Semaphore::MAX_PERMITS)
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
    use crate::gateway::body::Received;

    /// Serves one client, on a clock that jumps whenever all wait for it.
    async fn served(app: Router) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (stream, address) = accepted.unwrap();
        tokio::spawn(async move {
            let (_sender, phase) = tokio::sync::watch::channel(Phase::Serving);
            connection(stream, address, app, server(), phase, &Notify::new()).await;
        });
        client.unwrap()
    }

    async fn rest(mut client: TcpStream) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
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
