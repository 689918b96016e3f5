//! A gateway to test, in this process.

use std::ops::Deref;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use llmlb_gateway::{Affinity, BackendSet, BackendUrl, Options};
pub(crate) use llmlb_tests::front::Front;
pub(crate) use llmlb_tests::model_server::{Backend, Gate, Next, Port};
pub(crate) use llmlb_tests::wire::{Message, STREAM, Wire, answer, chat, chunk, request};
pub(crate) use llmlb_tests::{PATIENCE, wait_until};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Ended with the test.
pub(crate) struct Gateway {
    front: Front,
    sets: watch::Sender<BackendSet>,
    gateway: Arc<llmlb_gateway::Gateway>,
    serving: Option<JoinHandle<()>>,
}

impl Gateway {
    /// In front of these backends, whose health it looks at often.
    pub(crate) fn before(urls: &[String]) -> Self {
        Self::with(urls, often())
    }

    pub(crate) fn with(urls: &[String], options: Options) -> Self {
        let (sets, followed) = watch::channel(set(urls));
        let gateway = Arc::new(llmlb_gateway::Gateway::new(options).unwrap());
        let (ready, listening) = std::sync::mpsc::channel();
        let serving = {
            let gateway = Arc::clone(&gateway);
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().unwrap();
                runtime.block_on(async {
                    gateway.follow(followed).await;
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    ready.send(listener.local_addr().unwrap().port()).unwrap();
                    gateway.serve(listener).await.unwrap();
                });
            })
        };
        let port = listening.recv_timeout(PATIENCE).unwrap();
        Self {
            front: Front { port },
            sets,
            gateway,
            serving: Some(serving),
        }
    }

    /// From now on, these are its backends.
    pub(crate) fn now_before(&self, urls: &[String]) {
        self.send(set(urls));
    }

    pub(crate) fn send(&self, set: BackendSet) {
        self.sets.send(set).unwrap();
    }

    pub(crate) fn drain(&self) {
        self.gateway.drain();
    }

    pub(crate) fn cut(&self) {
        self.gateway.cut();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) {
        wait_until("the gateway to end", || {
            let serving = self.serving.as_ref()?;
            serving.is_finished().then_some(())
        });
        self.serving.take().unwrap().join().unwrap();
    }
}

impl Deref for Gateway {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.gateway.cut();
        if let Some(serving) = self.serving.take() {
            let ended = serving.join();
            assert!(ended.is_ok() || thread::panicking(), "the gateway panicked");
        }
    }
}

/// Without affinity: most tests send the same conversation again and again.
pub(crate) fn plain() -> Options {
    Options::new().affinity(Affinity::Off)
}

/// Looks at the backends often.
pub(crate) fn often() -> Options {
    plain().health_interval(Duration::from_millis(50))
}

/// Looks at the backends once, as tests are concerned.
pub(crate) fn once() -> Options {
    plain().health_interval(Duration::from_secs(3600))
}

pub(crate) fn set(urls: &[String]) -> BackendSet {
    let parse = |url: &String| url.parse::<BackendUrl>().unwrap();
    urls.iter().map(parse).collect()
}
