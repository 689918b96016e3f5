//! The bodies that are waited for: so many and no more. When room runs out, the slowest makes some.
//!
//! Apart from how much memory bodies take, which does not depend on how fast they come.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Refusal;

/// How long each is waited for, however slow it is.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes in a second. Who sends as many makes room for nobody.
const FAST: u64 = 16 << 10;

pub(super) struct Uploads {
    most: usize,
    going_on: Mutex<GoingOn>,
}

#[derive(Default)]
struct GoingOn {
    next: u64,
    all: HashMap<u64, Arc<Progress>>,
}

struct Progress {
    since: Instant,
    read: AtomicU64,
    cut: Notify,
}

/// One that is waited for.
pub(super) struct Waited {
    id: u64,
    progress: Arc<Progress>,
    uploads: Arc<Uploads>,
}

impl Uploads {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            going_on: Mutex::default(),
        }
    }

    /// A body has to be waited for.
    pub(super) fn wait(self: &Arc<Self>) -> Result<Waited, Refusal> {
        let mut going_on = self.going_on();
        if going_on.all.len() >= self.most {
            going_on.make_room()?;
        }
        let id = going_on.next;
        going_on.next += 1;
        let progress = Arc::new(Progress::begin());
        going_on.all.insert(id, Arc::clone(&progress));
        drop(going_on);
        Ok(Waited {
            id,
            progress,
            uploads: Arc::clone(self),
        })
    }

    fn going_on(&self) -> MutexGuard<'_, GoingOn> {
        let going_on = self.going_on.lock();
        going_on.unwrap_or_else(PoisonError::into_inner)
    }
}

impl GoingOn {
    fn make_room(&mut self) -> Result<(), Refusal> {
        let now = Instant::now();
        let rates = self.all.iter();
        let rates = rates.filter_map(|(id, one)| Some((one.rate(now)?, *id)));
        let slowest = rates.min().filter(|(rate, _)| *rate < FAST);
        let (_, id) = slowest.ok_or(Refusal::TooManyUploads)?;
        if let Some(one) = self.all.remove(&id) {
            one.cut.notify_one();
        }
        Ok(())
    }
}

impl Progress {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            read: AtomicU64::new(0),
            cut: Notify::new(),
        }
    }

    /// In bytes per second, if that can be told already.
    fn rate(&self, now: Instant) -> Option<u64> {
        let time = now.duration_since(self.since);
        let read = self.read.load(Ordering::Relaxed);
        (time >= GRACE).then(|| (read as f64 / time.as_secs_f64()) as u64)
    }
}

impl Waited {
    pub(super) fn read(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.progress.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ready when another has got its room.
    pub(super) async fn cut(&self) {
        self.progress.cut.notified().await;
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        self.uploads.going_on().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    async fn is_cut(one: &Waited) -> bool {
        timeout(Duration::ZERO, one.cut()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_and_no_more() {
        let uploads = Arc::new(Uploads::new(1));
        let first = uploads.wait();
        assert!(first.is_ok() && uploads.wait().is_err());
        drop(first);
        assert!(uploads.wait().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_makes_room_and_who_is_fast_or_has_just_begun_does_not() {
        let uploads = Arc::new(Uploads::new(3));
        let [fast, slow, slowest] = [(); 3].map(|()| uploads.wait().ok().unwrap());
        advance(GRACE / 2).await;
        assert!(uploads.wait().is_err(), "all have just begun");
        advance(GRACE * 3 / 2).await;
        fast.read(2 * FAST as usize);
        slow.read(1000);
        slowest.read(999);
        let fourth = uploads.wait().ok().unwrap();
        assert!(is_cut(&slowest).await && !is_cut(&slow).await);
        let fifth = uploads.wait().ok().unwrap();
        assert!(is_cut(&slow).await);
        assert!(uploads.wait().is_err(), "the others have just begun");
        assert!(!is_cut(&fast).await && !is_cut(&fourth).await && !is_cut(&fifth).await);
        // Whoever was cut has no room to give back.
        drop((slow, slowest));
        assert!(uploads.wait().is_err());
        drop(fifth);
        assert!(uploads.wait().is_ok());
    }
}
