//! How many requests are lost to one of three backends that answers health checks and fails every
//! request at once. The bar: with 8 clients, under 3 % in the first 6 seconds, then under 0.5 %.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_gateway::{BackendUrl, Gateway, Options};
use llmlb_tests::front::Front;
use llmlb_tests::model_server::{Backend, Next};
use llmlb_tests::wire::{answer, chat, request};
use tokio::net::TcpListener;
use tokio::sync::watch;

const CLIENTS: usize = 8;

/// What the others take for an answer.
const WORK: Duration = Duration::from_millis(50);

pub(super) fn main() {
    for failing in [None, Some("500 Internal Server Error")] {
        let one = Backend::start(&["m"], move |_, wire| match failing {
            None => Next::Close,
            Some(status) => {
                wire.send(answer(status, "", ""));
                Next::Read
            }
        });
        let backends = [one, good(), good()];
        let front = serve(backends.iter().map(|b| b.url().parse().unwrap()).collect());
        println!(
            "One of three {}:",
            failing.unwrap_or("breaks each connection")
        );
        for (phase, seconds) in [("first", 6), ("then", 20)] {
            let (asked, lost) = load(front, Duration::from_secs(seconds));
            let share = 100.0 * lost as f64 / asked as f64;
            println!("  {phase} {seconds} s: {lost} of {asked} requests were lost, {share:.2} %");
        }
    }
}

fn good() -> Backend {
    Backend::start(&["m"], |_, wire| {
        thread::sleep(WORK);
        wire.send(answer("200 OK", "", "good"));
        Next::Read
    })
}

fn serve(backends: Vec<BackendUrl>) -> Front {
    let (ready, listening) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let gateway = Gateway::new(Options::new()).unwrap();
            let (_sets, followed) = watch::channel(backends.into_iter().collect());
            gateway.follow(followed).await;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ready.send(listener.local_addr().unwrap().port()).unwrap();
            gateway.serve(listener).await.unwrap();
        });
    });
    let port = listening.recv().unwrap();
    Front { port }
}

/// Asks for so long. Returns how often, and how often in vain.
fn load(front: Front, time: Duration) -> (usize, usize) {
    let (asked, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while begun.elapsed() < time {
                    let mut client = front.connect();
                    client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
                    asked.fetch_add(1, Ordering::Relaxed);
                    if client.message().is_none_or(|answer| answer.status() != 200) {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    (asked.into_inner(), lost.into_inner())
}
