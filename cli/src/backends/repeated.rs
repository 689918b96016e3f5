//! Backends that are named more than once: one backend, where all is the same, and else a mistake, or
//! of two sources the matter of the first.

use std::collections::HashMap;

use super::document::Problem;
use super::entry::Backend;

/// Each of those of one file once.
pub(super) fn once(backends: Vec<Backend>) -> Result<Vec<Backend>, Problem> {
    let mut all: Vec<Backend> = Vec::new();
    let mut known = HashMap::new();
    for backend in backends {
        let line = backend.line.unwrap_or(1);
        let at = *known.entry(backend.place.to_string()).or_insert(all.len());
        let Some(first) = all.get(at) else {
            all.push(backend);
            continue;
        };
        if !first.is_used_as(&backend) {
            let problem = format!(
                "{} has another weight, max or key-env on line {}: name it once",
                backend.place,
                first.line.unwrap_or(1)
            );
            return Err((line, problem));
        }
    }
    Ok(all)
}

/// Each once, and what is to be said of those that are to be used in two ways. The first that is
/// named counts.
pub(super) fn first<'a>(
    sources: impl IntoIterator<Item = (String, &'a [Backend])>,
) -> (Vec<&'a Backend>, Vec<String>) {
    let mut all = Vec::new();
    let mut known: HashMap<String, (&Backend, String)> = HashMap::new();
    let mut remarks = Vec::new();
    for (name, backends) in sources {
        for backend in backends {
            let place = backend.place.to_string();
            match known.get(&place) {
                None => {
                    all.push(backend);
                    known.insert(place, (backend, name.clone()));
                }
                Some((first, by)) if !first.is_used_as(backend) => remarks.push(format!(
                    "{name} gives {place} another weight, max or key-env than {by}, which \
                     counts"
                )),
                Some(_) => {}
            }
        }
    }
    (all, remarks)
}
