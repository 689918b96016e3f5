//! A program that takes connections itself, and has a gateway among what it serves.

use std::net::SocketAddr;

use axum::routing::get;
use axum::{Extension, Router};
use llmlb_gateway::{ClientAddress, Gateway};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::support::{Backend, Front, Gate, Next, STREAM, chat, chunk, often, request, set};

async fn serve(app: Router) -> Front {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Front { port }
}

#[tokio::test]
async fn backends_are_told_who_asks_by_a_program_that_knows() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::new(often()).unwrap();
    let (_sets, followed) = watch::channel(set(&[backend.url()]));
    gateway.follow(followed).await;
    let client = ClientAddress(SocketAddr::from(([10, 0, 0, 7], 1)));
    let app = Router::new()
        .route("/mine", get(|| async { "mine" }))
        .fallback_service(gateway.router());
    let knows = serve(app.clone().layer(Extension(client))).await;
    let does_not = serve(app).await;
    spawn_blocking(move || {
        assert_eq!(knows.get("/mine").body, b"mine");
        for front in [knows, does_not] {
            assert_eq!(front.chat("m").body, b"fine");
        }
        let requests = backend.requests();
        assert_eq!(requests[0].all("x-forwarded-for"), ["10.0.0.7"]);
        assert_eq!(requests[1].header("x-forwarded-for"), None);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn it_waits_for_what_is_in_flight() {
    let gate = Gate::default();
    let opened = gate.clone();
    let backend = Backend::start(&["m"], move |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("begun"));
        opened.pass();
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let gateway = Gateway::new(often()).unwrap();
    let (_sets, followed) = watch::channel(set(&[backend.url()]));
    gateway.follow(followed).await;
    let front = serve(gateway.router()).await;
    let begun = spawn_blocking(move || {
        let mut client = front.connect();
        client.send(request("POST", "/v1/x", "", &chat("m")));
        client.head().unwrap();
        assert_eq!(client.chunk().unwrap(), b"begun");
        client
    });
    let mut client = begun.await.unwrap();
    gateway.drain();
    let refused = spawn_blocking(move || front.chat("m").error_code());
    assert_eq!(refused.await.unwrap(), "shutting_down");
    let mut idle = Box::pin(gateway.wait_until_idle());
    let early = std::future::poll_fn(|context| std::task::Poll::Ready(idle.as_mut().poll(context)));
    assert!(early.await.is_pending());
    gate.open();
    let end = spawn_blocking(move || client.chunk());
    assert_eq!(end.await.unwrap().unwrap(), b"", "a clean end");
    idle.await;
}

#[tokio::test]
async fn another_source_of_backends_may_be_followed() {
    let mut first = Backend::named("first", &["m"]);
    let second = Backend::named("second", &["n"]);
    let gateway = Gateway::new(often()).unwrap();
    let (before, followed) = watch::channel(set(&[first.url()]));
    gateway.follow(followed).await;
    let (_sets, followed) = watch::channel(set(&[first.url(), second.url()]));
    gateway.follow(followed).await;
    assert!(before.send(set(&[])).is_err(), "nobody listens any more");
    let front = serve(gateway.router()).await;
    spawn_blocking(move || {
        front.wait_for_states(&["up", "up"]);
        // Looked after still, though it came from the first source.
        first.stop();
        front.wait_for_states(&["down", "up"]);
    })
    .await
    .unwrap();
}
