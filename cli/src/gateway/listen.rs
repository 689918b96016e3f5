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
    let mut phase = gateway.phase.subscribe();
    let room = Arc::new(Semaphore::new(room_for_clients(gateway)));
    let pressure = Arc::new(Notify::new());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
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
            match timeout(PAUSE, Arc::clone(room).acquire_owned()).await {
                Ok(Ok(permit)) => return (stream, address, permit),
                // Never closed.
                Ok(Err(_)) => std::future::pending().await,
                // The one that has waited longest goes first.
                Err(_) => pressure.notify_one(),
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
