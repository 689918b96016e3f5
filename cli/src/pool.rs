//! The same for many ports side by side, by as many threads as do any good: whoever fills the lock
//! directory must not exhaust the threads of those who look at it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Acts on each item by at most so many threads. This one is one of them, so that it ends where no
/// other can be started. In the order of the items.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    act: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return done;
            };
            done.push((index, act(item)));
        }
    };
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len()))
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn all_are_done_and_stay_in_order() {
        for (count, threads) in [(0, 4), (1, 4), (3, 1), (1000, 8)] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(
                map(&items, threads, |item| item * 2),
                items.iter().map(|i| i * 2).collect::<Vec<_>>()
            );
        }
    }
}
