//! The models of all backends, taken together: put together when that changes, not when it is asked
//! for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde_json::Value;

use crate::backend::models::{Models, names_of};
use crate::live::Live;
use crate::naming::Naming;
use crate::roster::Roster;

/// How many names fit into a message.
const NAMES: usize = 20;

/// What the backends listed that were up at one time, each model once.
pub(crate) struct Catalog {
    roster: Arc<Roster>,
    up: Vec<bool>,
    /// Whether any says what it serves.
    pub(crate) known: bool,
    /// As `/v1/models` gives it.
    pub(crate) list: Bytes,
    /// As `/v1/models/ID` gives each.
    entries: HashMap<String, Bytes>,
    /// The first of them, and how many more there are.
    pub(crate) names: (Vec<String>, usize),
}

impl Catalog {
    pub(crate) fn entry(&self, id: &str) -> Option<Bytes> {
        self.entries.get(id).cloned()
    }

    fn new(roster: Arc<Roster>, naming: &Naming) -> Self {
        let up: Vec<bool> = roster.members().iter().map(|b| b.is_up()).collect();
        let members = roster.members().iter().zip(&up);
        let listings = members.filter(|(_, up)| **up).map(|(b, _)| b.models());
        let listings: Vec<_> = listings.flatten().collect();
        let mut text = br#"{"object":"list","data":["#.to_vec();
        let mut places = HashMap::new();
        let mut names = (Vec::new(), 0);
        let listed = listings.iter().flat_map(|models| models.entries());
        let listed = listed.filter(|(id, _)| !naming.is_alias(id));
        let listed = listed.map(|(id, entry)| (id, Cow::Borrowed(entry)));
        let aliases = aliased(&listings, naming);
        for (id, entry) in listed.chain(aliases) {
            if places.contains_key(id) {
                continue;
            }
            if !places.is_empty() {
                text.push(b',');
            }
            let start = text.len();
            text.extend_from_slice(entry.to_string().as_bytes());
            places.insert(id.clone(), start..text.len());
            if names.0.len() < NAMES {
                names.0.push(id.clone());
            } else {
                names.1 += 1;
            }
        }
        text.extend_from_slice(b"]}");
        let list = Bytes::from(text);
        let places = places.into_iter();
        Self {
            known: !listings.is_empty(),
            entries: places.map(|(id, place)| (id, list.slice(place))).collect(),
            list,
            names,
            roster,
            up,
        }
    }

    fn is_of(&self, roster: &Arc<Roster>) -> bool {
        let members = || roster.members().iter().zip(&self.up);
        Arc::ptr_eq(&self.roster, roster) && members().all(|(b, up)| b.is_up() == *up)
    }
}

/// The aliases of what is listed, each with the entry of its model.
fn aliased<'a>(
    listings: &[Arc<Models>],
    naming: &'a Naming,
) -> Vec<(&'a String, Cow<'static, Value>)> {
    let entries = || listings.iter().flat_map(|models| models.entries());
    let aliases = naming.aliases().filter_map(|(alias, model)| {
        let goes_by = |id: &str| names_of(id).any(|name| name == model);
        let (_, entry) = entries().find(|(id, _)| goes_by(id))?;
        let mut entry = entry.clone();
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("id".to_owned(), alias.as_str().into());
        }
        Some((alias, Cow::Owned(entry)))
    });
    let mut aliases: Vec<_> = aliases.collect();
    aliases.sort_by_key(|(alias, _)| *alias);
    aliases
}

/// The latest one.
#[derive(Default)]
pub(crate) struct Catalogs(ArcSwapOption<Catalog>);

impl Catalogs {
    /// Of the backends as they are now, and by the gateway's names, which stay.
    pub(crate) fn now(&self, live: &Live, naming: &Naming) -> Arc<Catalog> {
        let roster = live.roster();
        if let Some(catalog) = self.0.load_full().filter(|known| known.is_of(&roster)) {
            return catalog;
        }
        let catalog = Arc::new(Catalog::new(Arc::clone(&roster), naming));
        self.0.store(Some(Arc::clone(&catalog)));
        catalog
    }
}
