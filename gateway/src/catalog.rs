//! The models of all backends, taken together.

use serde_json::Value;

use crate::live::Live;

/// Of all backends that are up, each once.
pub(crate) fn entries(live: &Live) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = Vec::new();
    let roster = live.roster();
    let up = roster.members().iter().filter(|b| b.is_up());
    for models in up.filter_map(|backend| backend.models()) {
        for (id, entry) in models.entries() {
            if !all.iter().any(|(known, _)| known == id) {
                all.push((id.clone(), entry.clone()));
            }
        }
    }
    all
}

pub(crate) fn names(live: &Live) -> Vec<String> {
    entries(live).into_iter().map(|(id, _)| id).collect()
}

/// Whether any backend that is up says what it serves.
pub(crate) fn is_known(live: &Live) -> bool {
    let roster = live.roster();
    let mut members = roster.members().iter();
    members.any(|b| b.is_up() && b.models().is_some())
}
