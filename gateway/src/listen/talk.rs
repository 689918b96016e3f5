//! The part of a client's connection that hyper has a hand in: its requests and their answers.

use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::activity::{Activity, Clock, Quiet};
use super::aside::Aside;
use super::clients::Client;
use super::lent::Lent;
use super::signal::{self, HURRY, Signal};
use super::socket::Socket;
use crate::life::Phase;
use crate::pages::is_for_backends;
use crate::peer::Peer;
use crate::shared::Shared as Gateway;
use crate::{protocol, proxy};

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What requests are given to.
#[derive(Clone)]
pub(super) struct App {
    pub(super) router: Router,
    /// For those that need no router.
    pub(super) shared: Option<Arc<Gateway>>,
}

/// Answers the requests of one client.
pub(super) struct Host {
    peer: Arc<Peer>,
    router: TowerToHyperService<Router>,
    shared: Option<Arc<Gateway>>,
    phase: Receiver<Phase>,
    activity: Arc<Activity>,
}

/// On the heap, as it is big.
type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Has a future made where it stays: it is too big to be carried there.
fn in_place<F: Future<Output = Response> + Send + 'static>(make: impl FnOnce() -> F) -> Answering {
    let place = Box::<F>::new_uninit();
    let made: Pin<Box<F>> = Box::into_pin(Box::write(place, make()));
    made
}

impl Host {
    pub(super) fn new(
        peer: Arc<Peer>,
        app: App,
        phase: Receiver<Phase>,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            peer,
            router: TowerToHyperService::new(app.router),
            shared: app.shared,
            phase,
            activity,
        }
    }

    fn answer(&self, request: Request<Incoming>) -> Answering {
        if let Err(refusal) = protocol::check(&request) {
            return Box::pin(ready(refusal.into_response()));
        }
        let mut request = request.map(Body::new);
        match &self.shared {
            Some(shared) if is_for_backends(&request) => {
                let (shared, peer) = (Arc::clone(shared), Arc::clone(&self.peer));
                in_place(|| proxy::direct(shared, peer, request))
            }
            _ => {
                request.extensions_mut().insert(Arc::clone(&self.peer));
                let answer = self.router.call(request);
                Box::pin(async move {
                    let Ok(answer) = answer.await;
                    answer
                })
            }
        }
    }

    /// Whether what has been read of the client ends within a request.
    pub(super) fn is_within(&self) -> bool {
        self.activity.is_within()
    }

    fn speaks_tls(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.options.tls.is_some())
    }

    /// Whether its answer must not look whole.
    pub(super) fn is_broken(&self) -> bool {
        self.peer.broken.load(Ordering::Relaxed)
    }

    /// What is left to do when an answer is known.
    fn finish(&self, answer: &mut Response) {
        let leaves = matches!(*self.phase.borrow(), Phase::Retiring | Phase::Retired);
        if leaves && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer.headers_mut().insert(CONNECTION, CLOSE);
        }
        self.activity.answers();
    }
}

/// How talking to a client has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Talked {
    /// It has been quiet for a while, and may ask again.
    Quiet,
    /// All is said, on one side at least.
    Done,
    /// The client has left, or is to leave.
    Ended,
}

/// Talks to a client for a while.
pub(super) async fn talk<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    host: &Arc<Host>,
    stream: Lent<S>,
    client: &Client,
    phase: Receiver<Phase>,
) -> Talked {
    let service = service_fn(|request| {
        let answer = host.answer(request);
        async move {
            let mut answer = answer.await;
            host.finish(&mut answer);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    // Whose length does not matter.
    let deadline = Duration::from_secs(1);
    http.timer(Clock::new(&host.activity))
        .header_read_timeout(deadline)
        // Else it reads on while a request is in flight, into a new buffer. With TLS it has to, as an
        // end that is told is not seen from outside.
        .half_close(Socket::TELLS_THE_END && !host.speaks_tls());
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection.with_upgrades());
    let mut is_let_go = false;
    let mut quiet = Quiet::default();
    loop {
        let signal = pin!(signal::next(client, phase.clone(), is_let_go));
        let mut signal = Aside::new(signal);
        tokio::select! {
            // First, so that a request that is there is seen.
            biased;
            // What goes wrong with a client is its own affair.
            _ = connection.as_mut() => return Talked::Done,
            () = poll_fn(|context| {
                if client.socket.is_blocked() {
                    return Poll::Pending;
                }
                quiet.poll(context, &host.activity)
            }) => return Talked::Quiet,
            signal = &mut signal => match signal {
                Signal::Left => return Talked::Ended,
                Signal::Closing => break,
                Signal::Cut => {
                    // Whoever has only waited is told, and nothing is lost by it.
                    if host.peer.waits.load(Ordering::Relaxed) {
                        connection.as_mut().graceful_shutdown();
                        let _ = timeout(HURRY, connection.as_mut()).await;
                    }
                    return Talked::Ended;
                }
                Signal::LetGo => {
                    is_let_go = true;
                    // At once where nothing is asked, and behind the answer where something is.
                    connection.as_mut().graceful_shutdown();
                }
                Signal::MakeRoom => {
                    if !client.is_busy() {
                        return Talked::Ended;
                    }
                }
            },
        }
    }
    connection.as_mut().graceful_shutdown();
    // An answer that is still going out is waited for, the rest of a request is not.
    while timeout(HURRY, connection.as_mut()).await.is_err() {
        if !client.is_busy() && !client.socket.is_blocked() {
            return Talked::Ended;
        }
    }
    Talked::Ended
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::{Notify, watch};
    use tokio::time::sleep;

    use super::super::clients::Clients;
    use super::super::lent::Home;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hyper_goes_when_the_connection_is_quiet_and_not_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (mut client, (socket, stream)) = (client.unwrap(), Socket::new(accepted.unwrap().0));
        let peer = Arc::new(Peer::default());
        let entry = Clients::enter(&Arc::default(), &peer, &socket);
        let (_sender, phase) = watch::channel(Phase::Serving);
        let gate = Arc::new(Notify::new());
        let opened = Arc::clone(&gate);
        let slow = || async move { opened.notified().await };
        let app = App {
            router: Router::new().route("/", get(slow)),
            shared: None,
        };
        let host = Arc::new(Host::new(peer, app, phase.clone(), Arc::default()));
        let home = Home::of(stream);

        let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut talking = pin!(talk(&host, home.lend().unwrap(), &entry.client, phase));
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, talking.as_mut()).await.is_err());
        assert!(home.lend().is_none());
        gate.notify_one();
        let read = async {
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            sleep(hour).await;
        };
        tokio::select! {
            talked = talking => assert_eq!(talked, Talked::Quiet),
            () = read => panic!("it is quiet by then"),
        }
        assert!(home.lend().is_some());
    }
}
