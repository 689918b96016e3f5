//! What models are asked for by other names, and which may stand in for others: as the operator has
//! it, and by no means as any backend does.

use std::collections::HashMap;

/// Names of models beside those that backends list.
///
/// ```
/// # use llmlb_gateway::{Naming, Options};
/// let naming = Naming::new()
///     .alias("gpt-4o", "llama-3-70b")?
///     .fallback("llama-3-70b", ["qwen-72b", "llama-3-8b"])?
///     .default_model("llama-3-8b")?;
/// let options = Options::new().naming(naming);
/// # Ok::<(), llmlb_gateway::NamingError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    aliases: HashMap<String, String>,
    fallbacks: HashMap<String, Vec<String>>,
    default: Option<String>,
}

/// Why names make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NamingError(String);

impl Naming {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Who asks for `alias` gets `model`, in an answer that says `alias`.
    ///
    /// # Errors
    /// A name that is empty or no text of one line; an alias of itself, of another alias, or of two
    /// models.
    pub fn alias(
        mut self,
        alias: impl Into<String>,
        model: impl Into<String>,
    ) -> Result<Self, NamingError> {
        let (alias, model) = (name(alias)?, name(model)?);
        let problem = if alias == model {
            Some(format!("{alias} is an alias of itself"))
        } else if self.aliases.contains_key(&model) {
            Some(format!(
                "{alias} is an alias of {model}, which is one itself"
            ))
        } else if self.aliases.values().any(|known| *known == alias) {
            Some(format!("{alias} has an alias, and is to be one itself"))
        } else {
            let known = self.aliases.get(&alias).filter(|known| **known != model);
            known.map(|known| format!("{alias} is an alias of both {known} and {model}"))
        };
        if let Some(problem) = problem {
            return Err(NamingError(problem));
        }
        self.aliases.insert(alias, model);
        Ok(self)
    }

    /// When no backend that serves `model` is up, the first of `others` that one serves stands in for
    /// it, in an answer that says whose it is.
    ///
    /// # Errors
    /// A name that is empty or no text of one line; no name at all; one twice.
    pub fn fallback<T: Into<String>>(
        mut self,
        model: impl Into<String>,
        others: impl IntoIterator<Item = T>,
    ) -> Result<Self, NamingError> {
        let model = name(model)?;
        let mut all: Vec<String> = Vec::new();
        for other in others {
            let other = name(other)?;
            if other == model || all.contains(&other) {
                let problem = format!("{other} is named twice in the fallback of {model}");
                return Err(NamingError(problem));
            }
            all.push(other);
        }
        if all.is_empty() {
            return Err(NamingError(format!("the fallback of {model} is empty")));
        }
        if self.fallbacks.contains_key(&model) {
            return Err(NamingError(format!("{model} has two fallbacks")));
        }
        self.fallbacks.insert(model, all);
        Ok(self)
    }

    /// Who asks for no model where one is to be named, gets this one.
    ///
    /// # Errors
    /// A name that is empty or no text of one line.
    pub fn default_model(mut self, model: impl Into<String>) -> Result<Self, NamingError> {
        self.default = Some(name(model)?);
        Ok(self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.aliases.is_empty() && self.fallbacks.is_empty() && self.default.is_none()
    }

    pub(crate) fn default_name(&self) -> Option<&str> {
        self.default.as_deref()
    }

    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&String, &String)> {
        self.aliases.iter()
    }

    pub(crate) fn is_alias(&self, name: &str) -> bool {
        self.aliases.contains_key(name)
    }

    /// What is to be had for this name: the model, then those that may stand in for it.
    pub(crate) fn order<'a>(&'a self, asked: &'a str) -> Vec<&'a str> {
        let model = self.model(asked);
        let mut order = vec![model];
        let fallbacks = [asked, model].map(|name| self.fallbacks.get(name));
        for other in fallbacks.into_iter().flatten().flatten() {
            let other = self.model(other);
            if !order.contains(&other) {
                order.push(other);
            }
        }
        order
    }

    fn model<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }
}

fn name(name: impl Into<String>) -> Result<String, NamingError> {
    let name = name.into();
    if name.is_empty() {
        return Err(NamingError("the name of a model is empty".to_owned()));
    }
    if name.chars().any(char::is_control) {
        let problem = format!("no model has control characters in its name: {name:?}");
        return Err(NamingError(problem));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_comes_first_then_its_fallbacks_in_order() {
        let naming = Naming::new()
            .alias("gpt", "llama")
            .and_then(|naming| naming.alias("small", "phi"))
            .and_then(|naming| naming.fallback("llama", ["qwen", "small"]))
            .and_then(|naming| naming.fallback("gpt", ["first", "qwen"]))
            .unwrap();
        assert_eq!(naming.order("llama"), ["llama", "qwen", "phi"]);
        assert_eq!(naming.order("gpt"), ["llama", "first", "qwen", "phi"]);
        assert_eq!(naming.order("small"), ["phi"]);
        assert_eq!(naming.order("other"), ["other"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let naming = || Naming::new().alias("a", "b").unwrap();
        for refused in [
            naming().alias("x", "x"),
            naming().alias("x", "a"),
            naming().alias("b", "x"),
            naming().alias("a", "c"),
            naming().alias("", "x"),
            naming().alias("x", "y\r\nz"),
            naming().fallback("x", ["x"]),
            naming().fallback("x", ["y", "y"]),
            naming().fallback("x", [""; 0]),
            naming().fallback("x", ["y"]).unwrap().fallback("x", ["z"]),
            naming().default_model(""),
        ] {
            assert!(refused.is_err(), "{refused:?}");
        }
        assert!(naming().alias("a", "b").is_ok(), "said twice");
    }
}
