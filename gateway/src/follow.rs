//! Follows the sets of backends that the owner sends, and has each of them looked after for as long
//! as it is one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::info;

use crate::backend::Backend;
use crate::history::STEP;
use crate::set::BackendSet;
use crate::shared::Shared;
use crate::{ollama, probe};

/// How long to wait for the first look at all of them.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// A task that ends with its owner.
pub(crate) struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to follow, and returns when every backend of the first set has been looked at or time is
/// up. One that answers late comes in when it does.
pub(crate) async fn follow(shared: Arc<Shared>, mut sets: watch::Receiver<BackendSet>) -> Task {
    let (looked, mut all_looked) = mpsc::channel(1);
    let mut care = HashMap::new();
    let first = sets.borrow_and_update().clone();
    apply(&shared, &first, &mut care, Some(&looked));
    drop(looked);
    let task = Task(tokio::spawn(async move {
        let mut samples = interval(STEP);
        samples.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Without a sender, the last set stays.
        let mut followed = true;
        loop {
            tokio::select! {
                changed = sets.changed(), if followed => match changed {
                    Ok(()) => {
                        let set = sets.borrow_and_update().clone();
                        apply(&shared, &set, &mut care, None);
                    }
                    Err(_) => followed = false,
                },
                _ = samples.tick() => shared.sample(),
            }
        }
    }));
    // Ends when no sender is left.
    let _ = timeout(FIRST_LOOK, all_looked.recv()).await;
    task
}

fn apply(
    shared: &Arc<Shared>,
    set: &BackendSet,
    care: &mut HashMap<String, Task>,
    looked: Option<&mpsc::Sender<()>>,
) {
    let change = shared.live.apply(set);
    for backend in change.removed {
        info!("Backend {} is no longer one", backend.name);
        care.remove(&backend.name);
        shared.bygone.note(&backend.name);
    }
    // Not only those that are new: another source may have been followed before.
    for backend in shared.live.roster().members() {
        care.entry(backend.name.clone()).or_insert_with(|| {
            let (shared, backend) = (Arc::clone(shared), Arc::clone(backend));
            Task(tokio::spawn(look_after(shared, backend, looked.cloned())))
        });
    }
}

async fn look_after(
    shared: Arc<Shared>,
    backend: Arc<Backend>,
    mut looked: Option<mpsc::Sender<()>>,
) {
    loop {
        let begun = Instant::now();
        probe::look(&shared.live, &backend).await;
        ollama::look(&backend).await;
        drop(looked.take());
        backend.pool.prune();
        backend.rest(begun).await;
    }
}
