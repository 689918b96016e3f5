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
    /// The line of the first of them.
    pub(crate) backends_at: Option<usize>,
}

impl Document {
    pub(super) fn of(backends: Vec<Backend>) -> Self {
        Self {
            settings: Vec::new(),
            backends,
            backends_at: None,
        }
    }
}

const BACKEND: &str = "backend";

#[derive(Deserialize)]
struct Tables {
    #[serde(default)]
    backend: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    url: Spanned<String>,
    weight: Option<Spanned<Value>>,
    max: Option<Spanned<Value>>,
    key_env: Option<Spanned<String>>,
}

fn line_at(text: &str, at: usize) -> usize {
    let before = text.get(..at);
    before.map_or(1, |before| before.matches('\n').count() + 1)
}

pub(crate) fn parse(text: &str) -> Result<Document, Problem> {
    let refused = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_at(text, span.start));
        (line, e.message().to_owned())
    };
    let all: BTreeMap<Spanned<String>, Value> = toml::from_str(text).map_err(refused)?;
    let mut settings = Vec::new();
    let mut backends_at = None;
    for (name, value) in all {
        let line = line_at(text, name.span().start);
        let name = name.into_inner();
        if name != BACKEND {
            settings.push(Setting { name, value, line });
            continue;
        }
        if !is_tables(&value) {
            let problem = "each backend is a table: [[backend]] with url = \"http://HOST:PORT\"";
            return Err((line, problem.to_owned()));
        }
        backends_at = Some(line);
    }
    settings.sort_by_key(|setting| setting.line);
    let tables: Tables = toml::from_str(text).map_err(refused)?;
    let tables = tables.backend.into_iter();
    let backends = tables.map(|table| backend(table, text));
    Ok(Document {
        settings,
        backends: backends.collect::<Result<_, _>>()?,
        backends_at,
    })
}

fn is_tables(value: &Value) -> bool {
    let tables = value.as_array();
    tables.is_some_and(|tables| tables.iter().all(Value::is_table))
}

fn backend(table: Table, text: &str) -> Result<Backend, Problem> {
    fn at<T>(text: &str, value: &Spanned<T>, problem: String) -> Problem {
        (line_at(text, value.span().start), problem)
    }
    let url = place(table.url.as_ref());
    let mut backend = Backend::new(url.map_err(|problem| at(text, &table.url, problem))?);
    backend.line = Some(line_at(text, table.url.span().start));
    let number = |name: &str, value: &Spanned<Value>| {
        number(value.as_ref()).ok_or_else(|| {
            let written = text.get(value.span()).unwrap_or_default();
            let problem = format!("{name} is a number from 1 on, not {written}");
            at(text, value, problem)
        })
    };
    if let Some(weight) = &table.weight {
        backend.weight = number("weight", weight)?;
    }
    if let Some(max) = &table.max {
        let max = number("max", max)?;
        backend.max = Some(max.try_into().unwrap_or(NonZeroUsize::MAX));
    }
    if let Some(variable) = &table.key_env {
        let set = backend.set_key_from(variable.as_ref());
        set.map_err(|problem| at(text, variable, problem))?;
    }
    Ok(backend)
}

fn number(value: &Value) -> Option<NonZeroU32> {
    let number = value.as_integer()?;
    NonZeroU32::new(u32::try_from(number).ok()?)
}
