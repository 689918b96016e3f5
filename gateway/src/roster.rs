//! A snapshot of the backends that requests may go to, with an index of what they list: made when
//! either changes, so that a request looks neither through lists nor for a lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::backend::models::names_of;
use crate::backend::{Backend, Load, Slot};
use crate::choose::Fit;

#[derive(Default)]
pub(crate) struct Roster {
    members: Vec<Arc<Backend>>,
    /// What each of them has in hand, to be read without a look at anything else of it.
    loads: Vec<Slot>,
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
        Self {
            members,
            loads,
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

    pub(crate) fn members(&self) -> &[Arc<Backend>] {
        &self.members
    }

    /// Whether some serve other models than others.
    pub(crate) fn differ(&self) -> bool {
        self.differ
    }

    /// How much is put before paths at most: nothing, where each backend is all of its server.
    pub(crate) fn longest_base(&self) -> usize {
        self.longest_base
    }

    /// Who may be asked for this model. Not `strict`, all may, those that do not list it last.
    pub(crate) fn eligible<'a>(
        &'a self,
        model: Option<&str>,
        strict: bool,
    ) -> impl Iterator<Item = (&'a Arc<Backend>, &'a Load, Fit)> {
        let listed: &[usize] = match model {
            Some(model) => self.listed.get(model).map_or(&[], Vec::as_slice),
            None => &[],
        };
        let (all, some) = match model {
            // Where none is asked for, each fits as well as the next.
            None => (Some(Fit::Listed), false),
            Some(_) if strict => (None, true),
            Some(_) => (Some(Fit::NotListed), true),
        };
        let fitting = [(listed, Fit::Listed), (&self.silent, Fit::Unknown)];
        let fitting = fitting.into_iter().filter(move |_| some);
        let fitting = fitting.flat_map(|(indices, fit)| indices.iter().map(move |&i| (i, fit)));
        // Those that fit come twice, and the better fit wins.
        let all = all
            .into_iter()
            .flat_map(|fit| (0..self.members.len()).map(move |i| (i, fit)));
        fitting
            .chain(all)
            .map(|(i, fit)| (&self.members[i], &*self.loads[i], fit))
    }
}
