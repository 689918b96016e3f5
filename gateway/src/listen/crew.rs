//! The workers of one listener: threads with a runtime of their own, among which its clients are
//! divided. The first is whoever listens.
//!
//! One of them accepts for all, and gives each client to the one that has the fewest. So the port
//! stays a single descriptor, which a successor with any number of workers can take over with all
//! who wait there; the shares are even, which neither a race for one listener nor the kernel's
//! hashing among several brings about; and a client is given away once, not for each request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use axum::Router;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::work::work;
use crate::shared::Shared;
use crate::worker::become_worker;

/// A client that has come in, on its way to a worker.
pub(super) struct Newcomer {
    stream: Stream,
    pub(super) address: SocketAddr,
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) counted: Counted,
}

enum Stream {
    Here(TcpStream),
    /// Known to no runtime.
    Elsewhere(std::net::TcpStream),
}

impl Newcomer {
    /// Its socket, on the runtime of whoever asks.
    pub(super) fn settle(
        self,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit, Counted)> {
        let stream = match self.stream {
            Stream::Here(stream) => stream,
            Stream::Elsewhere(stream) => TcpStream::from_std(stream)?,
        };
        Ok((stream, self.address, self.permit, self.counted))
    }
}

/// One client of a worker's, until it has left.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn among(clients: &Arc<AtomicUsize>) -> Self {
        clients.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(clients))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Member {
    inbox: UnboundedSender<Newcomer>,
    /// How many clients it has.
    clients: Arc<AtomicUsize>,
}

/// Those that clients are given to. When it is dropped, no more come.
pub(super) struct Crew(Vec<Member>);

impl Crew {
    /// As many as are wanted; and what the first has to do, with the threads of the others.
    pub(super) fn hire(shared: &Arc<Shared>, app: &Router) -> io::Result<(Self, Inbox, Threads)> {
        let (first, here) = member();
        let mut members = vec![first];
        let mut threads = Vec::new();
        for index in 1..shared.limits.workers {
            let (member, inbox) = member();
            members.push(member);
            threads.push(Thread::start(
                index,
                inbox,
                app.clone(),
                Arc::clone(shared),
            )?);
        }
        Ok((Self(members), here, Threads(threads)))
    }

    /// Gives a client to the one that has the fewest; of equals to the first, which costs least.
    pub(super) fn give(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        let members = self.0.iter().enumerate();
        let Some((index, member)) =
            members.min_by_key(|(_, one)| one.clients.load(Ordering::Relaxed))
        else {
            return;
        };
        let stream = if index == 0 {
            Stream::Here(stream)
        } else {
            // Fails for what is no socket.
            let Ok(stream) = stream.into_std() else {
                return;
            };
            Stream::Elsewhere(stream)
        };
        // A worker that has died is told of by its thread.
        let _ = member.inbox.send(Newcomer {
            stream,
            address,
            permit,
            counted: Counted::among(&member.clients),
        });
    }
}

pub(super) type Inbox = UnboundedReceiver<Newcomer>;

fn member() -> (Member, Inbox) {
    let (inbox, clients) = unbounded_channel();
    let member = Member {
        inbox,
        clients: Arc::default(),
    };
    (member, clients)
}

/// The workers that have a thread. Dropped, they end what they do.
pub(super) struct Threads(Vec<Thread>);

impl Threads {
    /// Waits until all have done their work, or one can't.
    pub(super) async fn done(mut self) -> io::Result<()> {
        for thread in &mut self.0 {
            match (&mut thread.done).await {
                Ok(result) => result?,
                Err(_) => return Err(io::Error::other("a worker has died")),
            }
        }
        Ok(())
    }
}

struct Thread {
    done: oneshot::Receiver<io::Result<()>>,
    /// Open as long as it is to go on.
    _wanted: oneshot::Sender<()>,
}

impl Thread {
    fn start(index: usize, inbox: Inbox, app: Router, shared: Arc<Shared>) -> io::Result<Self> {
        let (ended, done) = oneshot::channel();
        let (wanted, unwanted) = oneshot::channel::<()>();
        let body = move || {
            become_worker(index);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let result = runtime.map(|runtime| {
                runtime.block_on(async {
                    tokio::select! {
                        () = work(inbox, app, &shared) => {}
                        _ = unwanted => {}
                    }
                });
            });
            // By now all that it had is gone, with its runtime.
            drop(shared);
            let _ = ended.send(result);
        };
        let name = format!("worker-{index}");
        thread::Builder::new().name(name).spawn(body)?;
        Ok(Self {
            done,
            _wanted: wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn each_has_as_many_clients_as_the_others_whoever_leaves() {
        const WORKERS: usize = 4;
        let (members, mut inboxes): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| member()).unzip();
        let crew = Crew(members);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let room = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let come = async |count| {
            for _ in 0..count {
                let (client, accepted) =
                    tokio::join!(TcpStream::connect(address), listener.accept());
                drop(client);
                let permit = Arc::clone(&room).try_acquire_owned().unwrap();
                crew.give(accepted.unwrap().0, address, permit);
            }
        };
        let clients = || {
            let members = crew.0.iter();
            let clients = members.map(|one| one.clients.load(Ordering::Relaxed));
            clients.collect::<Vec<_>>()
        };
        come(64).await;
        assert_eq!(clients(), [16; WORKERS]);
        // All of one leave, and some of another.
        while inboxes[1].try_recv().is_ok() {}
        for _ in 0..5 {
            inboxes[3].try_recv().ok().unwrap();
        }
        assert_eq!(clients(), [16, 0, 16, 11]);
        come(21).await;
        assert_eq!(clients(), [16; WORKERS]);
        come(2).await;
        assert_eq!(clients(), [17, 17, 16, 16]);
    }
}
