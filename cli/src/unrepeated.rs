//! Arguments that may be secret, and so stay out of error messages: clap repeats all others.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};

/// Parses an argument, and does not repeat it when that fails: it may be secret.
#[derive(Clone)]
pub(crate) struct Unrepeated<F>(pub(crate) F);

impl<T, F> TypedValueParser for Unrepeated<F>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let text = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned());
        text.and_then(&self.0).map_err(|problem| {
            let name = arg.map(Arg::to_string).unwrap_or_default();
            let message = format!("invalid value for '{name}': {problem}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
