//! One client's connection, from when it comes to its end: it talks, or waits for a request.
//!
//! hyper is there only while it talks. With its buffers and all that belongs to a request it takes
//! ten times what is left of a connection that waits, and nearly all of them do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch::Receiver;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::server::TlsStream;

use super::activity::Activity;
use super::clients::{Client, Entry};
use super::crew::Counted;
use super::lent::Home;
use super::signal::{self, HURRY};
use super::socket::{Shared, Socket};
use super::strict::Strict;
use super::talk::{App, Host, Talked, talk};
use crate::life::Phase;
use crate::peer::Peer;
use crate::tls::ServerTls;

/// How long a client may idle between requests. Longer than any load balancer before this server
/// does by default (nginx 60 s, AWS 60 s, Google 600 s), so that it is never this one that closes a
/// connection just as a request comes. When room runs out, those that idle leave sooner.
const IDLE: Duration = Duration::from_secs(620);

/// How long a client may take to agree on how to speak.
const GREETING: Duration = Duration::from_secs(10);

/// How long a client may go on to send what is not read any more, and how long it may pause.
const UNREAD: Duration = Duration::from_secs(30);
const UNREAD_PAUSE: Duration = Duration::from_secs(5);

/// How long a client may read nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(60);

pub(super) async fn converse(
    (socket, stream): (Arc<Socket>, Shared),
    peer: Arc<Peer>,
    app: App,
    phase: Receiver<Phase>,
    (entry, _counted): (Entry, Counted),
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALLED));
    let stream = Box::pin(stream);
    let tls = app.shared.as_ref().and_then(|all| all.options.tls.clone());
    let client: &Client = &entry.client;
    match tls {
        None => {
            if asks(client, phase.clone()).await {
                hear(stream, (Arc::clone(&peer), client), app, phase).await;
            }
        }
        Some(tls) => {
            // On the heap, as what this takes is more than those that do not speak it need at all.
            let spoken = async {
                // What is asked may have come with the last of the greeting.
                if let Some(stream) = greet(&tls, stream, client, phase.clone()).await {
                    hear(stream, (Arc::clone(&peer), client), app, phase).await;
                }
            };
            Box::pin(spoken).await;
        }
    }
    // Where the end of the connection is the end of the answer, this one must look different.
    if peer.broken.load(Ordering::Relaxed) {
        socket.abort_at_end();
    }
}

/// Agrees with a client on how to speak, which it may leave before.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &ServerTls,
    stream: S,
    client: &Client,
    phase: Receiver<Phase>,
) -> Option<TlsStream<S>> {
    tokio::select! {
        greeted = timeout(GREETING, tls.accept(stream)) => greeted.ok()?.ok(),
        _ = signal::next(client, phase, false) => None,
    }
}

/// Answers a client that asks, as long as it does.
async fn hear<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    (peer, client): (Arc<Peer>, &Client),
    app: App,
    phase: Receiver<Phase>,
) {
    let activity = Arc::new(Activity::default());
    let home = Home::of(Strict::new(stream, Arc::clone(&activity)));
    let host = Arc::new(Host::new(peer, app, phase.clone(), activity));
    loop {
        let Some(stream) = home.lend() else {
            return;
        };
        // On the heap, as it is big: a connection that waits is not to keep the room for it.
        match Box::pin(talk(&host, stream, client, phase.clone())).await {
            Talked::Quiet => {}
            Talked::Done if host.is_within() && !host.is_broken() => {
                return Box::pin(linger(&home, client, phase)).await;
            }
            Talked::Done | Talked::Ended => return,
        }
        if !asks(client, phase.clone()).await {
            break;
        }
    }
    // With TLS, an end that is not told looks like one that was brought about.
    if let Some(mut stream) = home.lend() {
        let _ = timeout(HURRY, stream.shutdown()).await;
    }
}

/// Reads on what a client sends that has got its answer. A connection that is closed before is reset,
/// and with it goes an answer that has not been read yet.
async fn linger<S: AsyncRead + Unpin>(home: &Home<S>, client: &Client, phase: Receiver<Phase>) {
    let Some(mut stream) = home.lend() else {
        return;
    };
    let mut buffer = vec![0; 16 << 10];
    let read =
        async { while let Ok(Ok(1..)) = timeout(UNREAD_PAUSE, stream.read(&mut buffer)).await {} };
    tokio::select! {
        _ = timeout(UNREAD, read) => {}
        _ = signal::next(client, phase, false) => {}
    }
}

/// Waits for a client to ask, and tells whether it may.
async fn asks(client: &Client, phase: Receiver<Phase>) -> bool {
    tokio::select! {
        // First, so that a request that is there is seen.
        biased;
        // The end is seen by who reads.
        ready = client.socket.readable() => ready.is_ok(),
        () = sleep(IDLE) => false,
        _ = signal::next(client, phase, false) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::Router;
    use axum::body::Body;
    use axum::http::HeaderMap;
    use axum::routing::{get, post};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::clients::Clients;
    use super::super::strict::HEAD;
    use super::*;
    use crate::body::{Intake, Received};
    use crate::model::Search;

    /// Serves one client, on a clock that jumps whenever all wait for it.
    async fn served(app: Router) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (stream, address) = accepted.unwrap();
        let peer = Arc::new(Peer::new(Some(address), None));
        let socket = Socket::new(stream);
        let entry = Clients::enter(&Arc::default(), &peer, &socket.0);
        tokio::spawn(async move {
            let (_sender, phase) = tokio::sync::watch::channel(Phase::Serving);
            let app = App {
                router: app,
                shared: None,
            };
            let counted = Counted::among(&Arc::default());
            converse(socket, peer, app, phase, (entry, counted)).await;
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

    /// What asks for another protocol, of which none is spoken here: in the end, it stays HTTP.
    const UPGRADES: [&str; 4] = [
        "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: foo\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Content-Length: 2\r\n\r\n\n\n",
    ];

    #[tokio::test(start_paused = true)]
    async fn who_asked_for_another_protocol_in_vain_has_no_more_time_for_a_head() {
        for asks in UPGRADES {
            let mut client = served(Router::new().route("/", get(|| async { "[got]" }))).await;
            for _ in 0..2 {
                client.write_all(asks.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"[got]") {
                    answer.push(client.read_u8().await.unwrap());
                }
                // Quiet, or not.
                sleep(Duration::from_secs(9)).await;
            }
            client.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
            let since = tokio::time::Instant::now();
            assert_eq!(rest(client).await, "", "{asks}");
            let took = since.elapsed();
            assert!((HEAD..HEAD * 2).contains(&took), "{asks}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_before_another_protocol_is_refused_is_answered_and_no_more_is() {
        let got = || async {
            sleep(Duration::from_secs(1)).await;
            "[got]"
        };
        let mut client = served(Router::new().route("/", get(got))).await;
        let sent = format!("{}GET / HTTP/1.1\r\nHost: h\r\n\r\nGET", UPGRADES[2]);
        client.write_all(sent.as_bytes()).await.unwrap();
        let since = tokio::time::Instant::now();
        assert_eq!(rest(client).await.matches("[got]").count(), 2);
        assert!(since.elapsed() < HEAD, "{:?}", since.elapsed());
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
    async fn nothing_is_lost_wherever_a_client_pauses() {
        let app = || {
            let said = |body: String| async move { format!("[{body}]") };
            Router::new().route("/", post(said).get(|| async { "[got]" }))
        };
        let zeros = "0".repeat(60);
        let all = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody\
            POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
            2\r\nbo\r\n3\r\nady\r\n0\r\n\r\n\r\n\
            GET / HTTP/1.1\r\nHost: h\r\n\r\n\
            GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let all = format!(
            "{all}POST / HTTP/1.1\r\nContent-Length: {zeros}2\r\nHost: h\r\n\r\n\n\n\
            POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: h\r\nConnection: close\r\n\r\n\
            {zeros}4\r\nb\n\nd\r\n0\r\n\r\n"
        );
        for cut in 0..all.len() {
            let mut client = served(app()).await;
            let (first, second) = all.split_at(cut);
            client.write_all(first.as_bytes()).await.unwrap();
            // Much longer than it takes for a connection to be quiet, and shorter than a head may.
            sleep(Duration::from_secs(9)).await;
            client.write_all(second.as_bytes()).await.unwrap();
            let answer = rest(client).await;
            let bodies: Vec<&str> = answer.split('[').skip(1).collect();
            let bodies: Vec<&str> = bodies.iter().filter_map(|b| b.split(']').next()).collect();
            let sent = ["body", "boady", "got", "got", "\n\n", "b\n\nd"];
            assert_eq!(bodies, sent, "{cut}: {answer}");
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

    /// An answer that reads nothing of what it is asked.
    fn refuses() -> Router {
        Router::new().route("/", post(|| async { "[no]" }))
    }

    #[tokio::test]
    async fn who_is_answered_before_all_is_sent_gets_the_answer() {
        let long = vec![b'x'; 25 << 20];
        for length in ["Content-Length: 26214400", "Transfer-Encoding: chunked"] {
            let mut client = served(refuses()).await;
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{length}\r\n\r\n1900000\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&long[..long.len() - 9]).await.unwrap();
            let answer = rest(client).await;
            assert!(answer.ends_with("[no]"), "{length}: {answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_its_answer_does_not_send_for_ever() {
        for pause in [UNREAD_PAUSE / 2, UNREAD_PAUSE * 2] {
            let mut client = served(refuses()).await;
            // What is not sent is not refused.
            client.set_nodelay(true).unwrap();
            let begun = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n";
            client.write_all(begun.as_bytes()).await.unwrap();
            let since = tokio::time::Instant::now();
            while client.write_all(b"x").await.is_ok() {
                sleep(pause).await;
            }
            let took = since.elapsed();
            let least = if pause < UNREAD_PAUSE {
                UNREAD
            } else {
                UNREAD_PAUSE
            };
            let most = least + pause * 3;
            assert!((least..most).contains(&took), "{pause:?}: {took:?}");
        }
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
