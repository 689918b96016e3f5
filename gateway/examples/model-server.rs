//! A model server without a model, for benchmarks: a small JSON answer to a request, or, asked
//! to `stream`, 200 chunks, MILLIS apart.
//!
//! ```sh
//! cargo run --release -p llmlb-gateway --example model-server -- PORT [MILLIS]
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Interval, MissedTickBehavior, interval};

const CHUNKS: u32 = 200;

struct Stream {
    sent: u32,
    ticks: Interval,
}

impl Stream {
    fn new(millis: u64) -> Self {
        let mut ticks = interval(Duration::from_millis(millis));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { sent: 0, ticks }
    }
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == CHUNKS {
            return Poll::Ready(None);
        }
        ready!(self.ticks.poll_tick(context));
        // Not the same over and over, which some take for a model that is stuck.
        let word = ["word ", "more "][self.sent as usize % 2];
        self.sent += 1;
        let chunk = format!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"none","choices":[{{"index":0,"delta":{{"content":"{word}"}},"finish_reason":null}}]}}"#
        );
        let chunk = Bytes::from(format!("{chunk}\n\n"));
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

async fn answer(request: Request<Incoming>, millis: u64) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    if path == "/v1/models" {
        let list = r#"{"object":"list","data":[{"id":"none","object":"model"}]}"#;
        return Ok(Response::new(list.into()));
    }
    let wants = |text: &[u8]| body.windows(text.len()).any(|part| part == text);
    let streams = wants(b"\"stream\":true") || wants(b"\"stream\": true");
    let (kind, body) = if streams {
        ("text/event-stream", Body::new(Stream::new(millis)))
    } else {
        let answer = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"none","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
        ("application/json", Body::from(answer))
    };
    let mut response = Response::new(body);
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let port = args.next().and_then(Result::ok).unwrap_or(8001);
    let millis = args.next().and_then(Result::ok).unwrap_or(5).max(1);
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, millis));
            let http = hyper::server::conn::http1::Builder::new();
            // A client that leaves is no failure.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
