//! A TOML file of backends: a `[[backend]]` table for each, and beside them settings by the names of
//! the command line, where it is a configuration.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::entry::{Backend, place};

/// A problem and its line.
pub(crate) type Problem = (usize, String);

/// What a configuration says of one option.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) line: usize,
}

#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) settings: Vec<Setting>,
    pub(crate) backends: Vec<Backend>,
}

impl Document {
    pub(super) fn of(backends: Vec<Backend>) -> Self {
        Self {
            settings: Vec::new(),
            backends,
        }
    }
}

const BACKEND: &str = "backend";

#[derive(Deserialize)]
struct Tables {
    #[serde(default)]
    backend: Vec<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    url: String,
    weight: Option<NonZeroU32>,
    max: Option<NonZeroUsize>,
    key_env: Option<String>,
}

pub(crate) fn parse(text: &str) -> Result<Document, Problem> {
    let line_at = |at: usize| {
        text.get(..at)
            .map_or(1, |before| before.matches('\n').count() + 1)
    };
    let refused = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_at(span.start));
        (line, e.message().to_owned())
    };
    let all: BTreeMap<Spanned<String>, Value> = toml::from_str(text).map_err(refused)?;
    let mut settings: Vec<_> = all
        .into_iter()
        .map(|(name, value)| Setting {
            line: line_at(name.span().start),
            name: name.into_inner(),
            value,
        })
        .filter(|setting| setting.name != BACKEND)
        .collect();
    settings.sort_by_key(|setting| setting.line);
    let tables: Tables = toml::from_str(text).map_err(refused)?;
    let backends = tables.backend.into_iter().map(|table| {
        let line = line_at(table.span().start);
        backend(table.into_inner()).map_err(|problem| (line, problem))
    });
    Ok(Document {
        settings,
        backends: backends.collect::<Result<_, _>>()?,
    })
}

fn backend(table: Table) -> Result<Backend, String> {
    let mut backend = Backend::new(place(&table.url)?);
    backend.weight = table.weight.unwrap_or(NonZeroU32::MIN);
    backend.max = table.max;
    if let Some(variable) = &table.key_env {
        backend.set_key_from(variable)?;
    }
    Ok(backend)
}
