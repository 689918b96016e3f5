//! A snapshot of the backends that requests may go to, with an index of what they list: made when
//! either changes, so that a request looks neither through lists nor for a lock.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hasher;
use std::sync::Arc;

use crate::backend::models::names_of;
use crate::backend::{Backend, Load, Slot};
use crate::choose::Fit;

#[derive(Default)]
pub(crate) struct Roster {
    members: Vec<Arc<Backend>>,
    /// What each of them has in hand, to be read without a look at anything else of it.
    loads: Vec<Slot>,
    /// The hashes of their names, the same in each process.
    seeds: Vec<u64>,
    /// Who lists a model, by index, in order.
    listed: HashMap<String, Vec<usize>>,
    /// Who does not say what it serves.
    silent: Vec<usize>,
    /// Whether it matters which of them a request goes to.
    differ: bool,
    /// What is put before paths at most.
    longest_base: usize,
}

impl Roster {
    pub(crate) fn new(members: Vec<Arc<Backend>>) -> Self {
        let mut listed: HashMap<String, Vec<usize>> = HashMap::new();
        let mut silent = Vec::new();
        let mut differ = false;
        let mut first: Option<BTreeSet<String>> = None;
        for (index, backend) in members.iter().enumerate() {
            let Some(models) = backend.models() else {
                silent.push(index);
                continue;
            };
            let names: BTreeSet<&str> = models.names().flat_map(names_of).collect();
            match &first {
                None => first = Some(names.iter().map(|name| (*name).to_owned()).collect()),
                Some(first) => differ |= !first.iter().eq(names.iter()),
            }
            for name in names {
                listed.entry(name.to_owned()).or_default().push(index);
            }
        }
        // Of those that say nothing nobody knows more than of each other.
        differ |= first.is_some() && !silent.is_empty();
        let longest_base = members.iter().map(|b| b.url.base().len()).max();
        let loads = members.iter().map(|b| b.load().clone()).collect();
        let seeds = members.iter().map(|b| seed(&b.name)).collect();
        Self {
            members,
            loads,
            seeds,
            listed,
            silent,
            differ,
            longest_base: longest_base.unwrap_or(0),
        }
    }

    /// Whether any backend lists the model.
    pub(crate) fn lists(&self, model: &str) -> bool {
        self.listed.contains_key(model)
    }

    /// Whether one that is up serves the model, or may.
    pub(crate) fn is_served(&self, model: &str) -> bool {
        let listed = self.listed.get(model).into_iter().flatten();
        let mut may = listed.chain(&self.silent);
        may.any(|index| self.members[*index].is_up())
    }

    pub(crate) fn members(&self) -> &[Arc<Backend>] {
        &self.members
    }

    /// Where this one is among the members.
    pub(crate) fn index(&self, backend: &Backend) -> Option<usize> {
        let mut members = self.members.iter();
        members.position(|member| std::ptr::eq(&**member, backend))
    }

    /// Whether some serve other models than others.
    pub(crate) fn differ(&self) -> bool {
        self.differ
    }

    /// How much is put before paths at most: nothing, where each backend is all of its server.
    pub(crate) fn longest_base(&self) -> usize {
        self.longest_base
    }

    /// What this one has in hand.
    pub(crate) fn load(&self, index: usize) -> &Load {
        &self.loads[index]
    }

    /// What tells this one from others, in each process alike.
    pub(crate) fn seed(&self, index: usize) -> u64 {
        self.seeds[index]
    }

    /// Who may be asked for this model. Not `strict`, all may, those that do not list it last.
    pub(crate) fn eligible(&self, model: Option<&str>, strict: bool) -> Eligible<'_> {
        let all = self.members.len();
        match model {
            // Where none is asked for, each fits as well as the next.
            None => Eligible {
                listed: &[],
                silent: &[],
                all: Some((all, Fit::Listed)),
            },
            Some(model) => Eligible {
                listed: self.listed.get(model).map_or(&[], Vec::as_slice),
                silent: &self.silent,
                all: (!strict).then_some((all, Fit::NotListed)),
            },
        }
    }
}

fn seed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// Some of the members, by index, and how each fits. Those that fit come twice where `all` do, and the
/// better fit first.
#[derive(Clone, Copy)]
pub(crate) struct Eligible<'a> {
    listed: &'a [usize],
    silent: &'a [usize],
    all: Option<(usize, Fit)>,
}

impl Eligible<'_> {
    #[inline]
    pub(crate) fn for_each(self, mut visit: impl FnMut(usize, Fit)) {
        for &index in self.listed {
            visit(index, Fit::Listed);
        }
        for &index in self.silent {
            visit(index, Fit::Unknown);
        }
        if let Some((count, fit)) = self.all {
            for index in 0..count {
                visit(index, fit);
            }
        }
    }

    pub(crate) fn has(self, index: usize) -> bool {
        self.fit(index).is_some()
    }

    pub(crate) fn fit(self, index: usize) -> Option<Fit> {
        let is_one = |indices: &[usize]| indices.binary_search(&index).is_ok();
        if is_one(self.listed) {
            Some(Fit::Listed)
        } else if is_one(self.silent) {
            Some(Fit::Unknown)
        } else {
            self.all.map(|(_, fit)| fit)
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.listed.is_empty() && self.silent.is_empty() && self.all.is_none_or(|(n, _)| n == 0)
    }
}
