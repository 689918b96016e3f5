//! A snapshot of the backends that requests may go to, with an index of what they list: made when
//! either changes, so that a request looks neither through lists nor for a lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::models::names_of;
use crate::choose::Fit;

#[derive(Default)]
pub(crate) struct Roster {
    members: Vec<Arc<Backend>>,
    /// Who lists a model, by index, in order.
    listed: HashMap<String, Vec<usize>>,
    /// Who does not say what it serves.
    silent: Vec<usize>,
}

impl Roster {
    pub(crate) fn new(members: Vec<Arc<Backend>>) -> Self {
        let mut listed: HashMap<String, Vec<usize>> = HashMap::new();
        let mut silent = Vec::new();
        for (index, backend) in members.iter().enumerate() {
            let Some(models) = backend.models() else {
                silent.push(index);
                continue;
            };
            let names: BTreeSet<&str> = models.names().flat_map(names_of).collect();
            for name in names {
                listed.entry(name.to_owned()).or_default().push(index);
            }
        }
        Self {
            members,
            listed,
            silent,
        }
    }

    pub(crate) fn members(&self) -> &[Arc<Backend>] {
        &self.members
    }

    /// Who may be asked for this model. Not `strict`, all may, those that do not list it last.
    pub(crate) fn eligible<'a>(
        &'a self,
        model: Option<&str>,
        strict: bool,
    ) -> impl Iterator<Item = (&'a Arc<Backend>, Fit)> {
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
        fitting.chain(all).map(|(i, fit)| (&self.members[i], fit))
    }
}
