//! One client's connection: its requests, its deadlines, and its end in good order.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::clients::Entry;
use super::socket::{Shared, Socket};
use super::strict::Strict;
use crate::life::Phase;
use crate::pages::is_for_backends;
use crate::peer::Peer;
use crate::shared::Shared as Gateway;
use crate::{protocol, proxy};

/// How long a client may idle between requests. Longer than any load balancer before this server
/// does by default (nginx 60 s, AWS 60 s, Google 600 s), so that it is never this one that closes a
/// connection just as a request comes. When room runs out, those that idle leave sooner.
const IDLE: Duration = Duration::from_secs(620);

/// How long a client may read nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(60);

/// How long a client of a server that has given up its port may idle. It asks elsewhere when the next
/// answer tells it to; closed on the instant, it could be about to ask here.
const LINGER: Duration = Duration::from_secs(5);

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// For what is about to happen anyway.
const HURRY: Duration = Duration::from_secs(1);

pub(super) fn server() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    http
}

pub(super) async fn converse(
    (socket, stream): (Arc<Socket>, Shared),
    peer: Peer,
    app: App,
    http: http1::Builder,
    mut phase: tokio::sync::watch::Receiver<Phase>,
    entry: Entry,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALLED));
    let answered = Arc::new(AtomicBool::new(false));
    let stream = Strict::new(Box::pin(stream), Arc::clone(&answered));
    let broken = Arc::clone(&peer.broken);
    let router = TowerToHyperService::new(app.router);
    let shared = app.shared;
    let phases = phase.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request, &peer, shared.as_ref(), &router);
        let answered = Arc::clone(&answered);
        let phases = phases.clone();
        async move {
            let mut answer = answer.await;
            let leaves = matches!(*phases.borrow(), Phase::Retiring | Phase::Retired);
            if leaves && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(CONNECTION, CLOSE);
            }
            answered.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let conversation = async {
        let mut connection = pin!(connection.with_upgrades());
        let mut given_up = phase.clone();
        let mut closing = pin!(phase.wait_for(|phase| *phase == Phase::Closing));
        let mut lingered = pin!(async {
            let _ = given_up.wait_for(|phase| *phase == Phase::Retired).await;
            sleep(LINGER).await;
        });
        let mut lingers = true;
        let client = &entry.client;
        loop {
            tokio::select! {
                // First, so that a request that is there is seen.
                biased;
                // What goes wrong with a client is its own affair.
                _ = connection.as_mut() => return,
                () = abandoned(&socket, &client.busy) => return,
                _ = closing.as_mut() => break,
                () = lingered.as_mut(), if lingers => {
                    lingers = false;
                    // At once where nothing is asked, and behind the answer where something is.
                    connection.as_mut().graceful_shutdown();
                }
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

/// What requests are given to.
#[derive(Clone)]
pub(super) struct App {
    pub(super) router: Router,
    /// For those that need no router.
    pub(super) shared: Option<Arc<Gateway>>,
}

/// On the heap, as it is big: a connection that idles is not to keep the room for it.
type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

fn answer(
    request: Request<Incoming>,
    peer: &Peer,
    shared: Option<&Arc<Gateway>>,
    router: &TowerToHyperService<Router>,
) -> Answering {
    if let Err(refusal) = protocol::check(&request) {
        return Box::pin(ready(refusal.into_response()));
    }
    let mut request = request.map(Body::new);
    match shared {
        Some(shared) if is_for_backends(&request) => {
            Box::pin(proxy::direct(Arc::clone(shared), peer.clone(), request))
        }
        _ => {
            request.extensions_mut().insert(peer.clone());
            let answer = hyper::service::Service::call(router, request);
            Box::pin(async move {
                let Ok(answer) = answer.await;
                answer
            })
        }
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

#[cfg(test)]
mod tests {
    use std::io;

    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use tokio::net::{TcpListener, TcpStream};

    use super::super::clients::Clients;
    use super::super::strict::HEAD;
    use super::*;
    use crate::body::{Intake, Received};
    use crate::model::Search;
    use axum::http::HeaderMap;

    /// Serves one client, on a clock that jumps whenever all wait for it.
    async fn served(app: Router) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (stream, address) = accepted.unwrap();
        let peer = Peer {
            address: Some(address),
            busy: Arc::default(),
            broken: Arc::default(),
            _permit: None,
        };
        let socket = Socket::new(stream);
        let entry = Clients::enter(&Arc::default(), &peer.busy, &socket.0);
        tokio::spawn(async move {
            let (_sender, phase) = tokio::sync::watch::channel(Phase::Serving);
            let app = App {
                router: app,
                shared: None,
            };
            converse(socket, peer, app, server(), phase, entry).await;
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
        let router = || Router::new().route("/", get(|| async {}));
        // Begun at once, or after another.
        for before in ["", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
            let mut client = served(router()).await;
            let sent = format!("{before}GET / HTTP/1.1\r\nHos");
            client.write_all(sent.as_bytes()).await.unwrap();
            let since = tokio::time::Instant::now();
            let answers = rest(client).await.matches(" 200 ").count();
            assert_eq!(answers, usize::from(!before.is_empty()));
            let took = since.elapsed();
            assert!((HEAD..HEAD * 2).contains(&took), "{before}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_idle_for_long() {
        for before in ["", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
            let mut client = served(Router::new()).await;
            client.write_all(before.as_bytes()).await.unwrap();
            let since = tokio::time::Instant::now();
            rest(client).await;
            assert!(since.elapsed() >= IDLE, "{before}: {:?}", since.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_its_body_is_told() {
        let read = |body: Body| async {
            let mut search = Search::new("/", &HeaderMap::new());
            match Received::read(body, &mut search, &Intake::new(1), true).await {
                Ok(_) => "all of it".to_owned(),
                Err(refusal) => refusal.status().to_string(),
            }
        };
        let mut client = served(Router::new().route("/", post(read))).await;
        let begun = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{";
        client.write_all(begun.as_bytes()).await.unwrap();
        let answer = rest(client).await;
        assert!(answer.ends_with("408 Request Timeout"), "{answer}");
        // Nor may one send a byte now and then for ever.
        let mut client = served(Router::new().route("/", post(read))).await;
        client.write_all(begun.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = client.into_split();
        let since = tokio::time::Instant::now();
        let trickle = tokio::spawn(async move {
            loop {
                sleep(HEAD / 4).await;
                if writing.write_all(b" ").await.is_err() {
                    return;
                }
            }
        });
        let mut answer = String::new();
        let _ = reading.read_to_string(&mut answer).await;
        assert!(answer.ends_with("408 Request Timeout"), "{answer}");
        assert!(since.elapsed() < HEAD * 2, "{:?}", since.elapsed());
        trickle.abort();
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
