//! What a server that loads models when they are asked for has in memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwapOption;

use super::models::names_of;

const UNKNOWN: u8 = 0;
const YES: u8 = 1;
const NO: u8 = 2;

/// Ollama is the one that tells.
#[derive(Default)]
pub(crate) struct Loaded {
    /// Whether it tells at all.
    tells: AtomicU8,
    models: ArcSwapOption<HashSet<String>>,
}

impl Loaded {
    /// It tells, and has these.
    pub(crate) fn set<'a>(&self, models: impl Iterator<Item = &'a str>) {
        let names = models.flat_map(names_of).map(str::to_owned);
        self.models.store(Some(Arc::new(names.collect())));
        self.tells.store(YES, Ordering::Relaxed);
    }

    /// It does not tell.
    pub(crate) fn deny(&self) {
        self.tells.store(NO, Ordering::Relaxed);
    }

    /// It may be another server when it returns.
    pub(crate) fn forget(&self) {
        self.tells.store(UNKNOWN, Ordering::Relaxed);
    }

    pub(crate) fn tells(&self) -> bool {
        self.tells.load(Ordering::Relaxed) == YES
    }

    pub(crate) fn may_tell(&self) -> bool {
        self.tells.load(Ordering::Relaxed) != NO
    }

    /// Whether it would have to load this one first.
    pub(crate) fn lacks(&self, model: &str) -> bool {
        self.tells() && {
            let models = self.models.load();
            models.as_ref().is_none_or(|models| !models.contains(model))
        }
    }

    /// It is about to load this one: the next request for it need not go elsewhere.
    pub(crate) fn expect(&self, model: &str) {
        self.models.rcu(|models| {
            let mut models = models.as_deref().cloned().unwrap_or_default();
            models.extend(names_of(model).map(str::to_owned));
            Some(Arc::new(models))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_tells_can_lack_a_model() {
        let loaded = Loaded::default();
        assert!(loaded.may_tell() && !loaded.lacks("a"));
        loaded.set(["a:latest"].into_iter());
        assert!(!loaded.lacks("a") && !loaded.lacks("a:latest") && loaded.lacks("b"));
        loaded.expect("b");
        assert!(!loaded.lacks("b") && !loaded.lacks("a"));
        loaded.set(["c"].into_iter());
        assert!(loaded.lacks("a"));
        loaded.deny();
        assert!(!loaded.may_tell() && !loaded.lacks("a"));
        loaded.forget();
        assert!(loaded.may_tell() && !loaded.tells());
    }
}
