//! `serve --config FILE`: what the file says becomes arguments, before those that were typed are
//! parsed, so that one parser judges both. What was typed, or stands in the environment, wins.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};
use toml::Value;

use crate::args::{Cli, not_for_commands, with_default_command};
use crate::backends::{BackendsFile, Document, Problem, Setting};
use crate::cluster;
use crate::exit::{self, Failure};

/// How alike a name must be to be what was meant; 1 is the same.
const ALIKE: f64 = 0.8;
/// What makes no sense in a file.
const TYPED_ALONE: [&str; 4] = ["config", "check", "help", "version"];
const COMMAND: &str = "command";
const BEFORE_COMMAND: &str = "--";

/// What this process was told: typed, and by its file.
pub(crate) struct Told {
    pub(crate) arguments: Vec<OsString>,
    file: Option<(PathBuf, Vec<Setting>)>,
}

impl Told {
    pub(crate) fn new() -> Result<Self, Failure> {
        let arguments = typed();
        let Some(path) = path(&arguments) else {
            return Ok(Self {
                arguments,
                file: None,
            });
        };
        let content = BackendsFile::config(&path, check).read();
        let settings = content
            .map_err(|problem| Failure::new(exit::USAGE, problem))?
            .settings;
        let joined = join(&arguments, &settings);
        let joined = joined.map_err(|(line, problem)| refused(&path, line, &problem))?;
        Ok(Self {
            arguments: joined.arguments,
            file: Some((path, joined.used)),
        })
    }

    /// The same message, with the line of the file where it is about one.
    pub(crate) fn locate(&self, message: &str) -> Option<Failure> {
        let (path, settings) = self.file.as_ref()?;
        let setting = about(message, settings)?;
        Some(refused(path, setting.line, message))
    }
}

fn typed() -> Vec<OsString> {
    with_default_command(cluster::typed())
}

/// A configuration that is read again must make sense beside what was typed.
pub(crate) fn file(path: &Path) -> BackendsFile {
    BackendsFile::config(path, check)
}

fn refused(path: &Path, line: usize, problem: &str) -> Failure {
    let message = format!("{}: line {line}: {problem}", path.display());
    Failure::new(exit::USAGE, message)
}

/// Whatever else is wrong with the arguments is told later.
fn path(arguments: &[OsString]) -> Option<PathBuf> {
    // No command without such a file pays for another parser.
    let is_named = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--config");
    let mut options = arguments
        .iter()
        .take_while(|argument| *argument != BEFORE_COMMAND);
    if !options.any(is_named) {
        return None;
    }
    let matches = leniently(arguments)?;
    let path: &PathBuf = matches.subcommand_matches("serve")?.get_one("config")?;
    Some(path.clone())
}

fn leniently(arguments: &[OsString]) -> Option<ArgMatches> {
    let parser = Cli::command().ignore_errors(true);
    parser.try_get_matches_from(arguments).ok()
}

fn check(document: &Document) -> Result<(), Problem> {
    let typed = typed();
    let joined = join(&typed, &document.settings)?;
    if let Some(line) = document.backends_at
        && joined.has_command()
    {
        return Err((line, not_for_commands("[[backend]]")));
    }
    let Some(error) = joined.error() else {
        return Ok(());
    };
    let message = told(&error);
    let problem = match about(&message, &joined.used) {
        Some(setting) => Some((setting.line, message)),
        None => in_need(&error, &typed, &joined.used),
    };
    // About what was typed: told when that is parsed.
    problem.map_or(Ok(()), Err)
}

/// What clap says, in a line, without its advice.
fn told(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("{line}: it is {}", one_of(values)),
        _ => line.to_owned(),
    }
}

fn one_of(values: &[String]) -> String {
    match values.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

fn about<'a>(message: &str, settings: &'a [Setting]) -> Option<&'a Setting> {
    settings.iter().find(|setting| {
        let option = format!("--{}", setting.name);
        let mut found = message.match_indices(&option);
        found.any(|(at, _)| {
            let behind = message[at + option.len()..].chars().next();
            behind.is_none_or(|c| c != '-' && !c.is_alphanumeric())
        })
    })
}

/// The setting that goes with another, which is not there: clap tells of that one alone.
fn in_need(error: &clap::Error, typed: &[OsString], settings: &[Setting]) -> Option<Problem> {
    let missing = missing(error)?;
    let lacks_it = |settings: &[Setting]| {
        let joined = join(typed, settings).ok();
        let error = joined.and_then(|joined| joined.error());
        error.and_then(|error| self::missing(&error)).as_ref() == Some(&missing)
    };
    if lacks_it(&[]) {
        return None;
    }
    let mut alone = settings.iter();
    let setting = alone.find(|setting| lacks_it(std::slice::from_ref(setting)))?;
    Some((setting.line, format!("{} needs {missing}", setting.name)))
}

/// The option that has to be there.
fn missing(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::MissingRequiredArgument {
        return None;
    }
    let Some(ContextValue::Strings(names)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let name = names.first()?.split(' ').next()?;
    Some(name.trim_start_matches('-').to_owned())
}

/// What was typed and what the file says.
struct Joined {
    arguments: Vec<OsString>,
    /// What nobody has said otherwise.
    used: Vec<Setting>,
}

impl Joined {
    fn error(&self) -> Option<clap::Error> {
        Cli::command().try_get_matches_from(&self.arguments).err()
    }

    fn has_command(&self) -> bool {
        let mut rest = self.arguments.iter().skip_while(|a| *a != BEFORE_COMMAND);
        rest.nth(1).is_some()
    }
}

/// The arguments with those of the file before them, but for what they say themselves.
fn join(typed: &[OsString], settings: &[Setting]) -> Result<Joined, Problem> {
    let matches = leniently(typed);
    let serve = matches.as_ref().and_then(|m| m.subcommand_matches("serve"));
    let command = Cli::command();
    let options = command
        .find_subcommand("serve")
        .map(Command::get_arguments)
        .into_iter()
        .flatten()
        .filter(|arg| {
            arg.get_long()
                .is_some_and(|name| !TYPED_ALONE.contains(&name))
        });
    let options: Vec<&Arg> = options.collect();
    let (before, after) = typed.split_at(typed.len().min(2));
    let mut joined = Joined {
        arguments: before.to_vec(),
        used: Vec::new(),
    };
    let mut run = Vec::new();
    for setting in settings {
        let at = |problem| (setting.line, problem);
        if setting.name == COMMAND {
            run = words(COMMAND, &setting.value).map_err(at)?;
            if run.is_empty() {
                return Err(at("command names no program".to_owned()));
            }
            continue;
        }
        let named = |arg: &&&Arg| arg.get_long() == Some(&setting.name);
        let option = options
            .iter()
            .find(named)
            .ok_or_else(|| at(unknown(&setting.name, &options)))?;
        if serve.is_some_and(|serve| is_said(serve, option)) {
            continue;
        }
        let said = arguments(option, &setting.value).map_err(at)?;
        joined.arguments.extend(said);
        joined.used.push(setting.clone());
    }
    joined.arguments.extend_from_slice(after);
    if !run.is_empty() && !typed.iter().any(|argument| argument == BEFORE_COMMAND) {
        joined.arguments.push(BEFORE_COMMAND.into());
        joined.arguments.extend(run.into_iter().map(OsString::from));
    }
    Ok(joined)
}

/// Whether it is typed, or in the environment. An empty variable is one that is not set.
fn is_said(serve: &ArgMatches, option: &Arg) -> bool {
    match serve.value_source(option.get_id().as_str()) {
        Some(ValueSource::CommandLine) => true,
        Some(ValueSource::EnvVariable) => option
            .get_env()
            .and_then(env::var_os)
            .is_some_and(|value| !value.is_empty()),
        _ => false,
    }
}

fn unknown(name: &str, options: &[&Arg]) -> String {
    if TYPED_ALONE.contains(&name) {
        return format!("{name} is for the command line");
    }
    let known = options.iter().filter_map(|arg| arg.get_long());
    let known = known.chain([COMMAND, "backend"]);
    let likeness = |known: &str| strsim::jaro_winkler(&name.replace('_', "-"), known);
    let meant = known.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match meant.filter(|meant| likeness(meant) >= ALIKE) {
        Some(meant) => format!("there is no '{name}': did you mean '{meant}'?"),
        None => format!("there is no '{name}': see llmlb serve --help for what there is"),
    }
}

/// What would have been typed.
fn arguments(option: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let name = option.get_long().unwrap_or_default();
    let is_flag = matches!(option.get_action(), ArgAction::SetTrue);
    let may_be_bare = option.get_num_args().is_some_and(|n| n.min_values() == 0);
    let text = match value {
        Value::Boolean(is_on) if is_flag || may_be_bare => {
            return Ok(is_on
                .then(|| format!("--{name}").into())
                .into_iter()
                .collect());
        }
        _ if is_flag => return Err(format!("{name} is true or false")),
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Array(_) if option.get_value_delimiter() == Some(',') => {
            words(name, value)?.join(",")
        }
        Value::Array(_) if matches!(option.get_action(), ArgAction::Append) => {
            let words = words(name, value)?.into_iter();
            return Ok(words
                .map(|word| format!("--{name}={word}").into())
                .collect());
        }
        _ => {
            let values = option.get_possible_values();
            let values: Vec<_> = values
                .iter()
                .map(|v| format!("{:?}", v.get_name()))
                .collect();
            return Err(match &*values {
                [] => format!("{name} is a text or a number"),
                values => format!("{name} is {}", one_of(values)),
            });
        }
    };
    Ok(vec![format!("--{name}={text}").into()])
}

fn words(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().map(Vec::as_slice);
    let text = |word: &Value| word.as_str().map(str::to_owned);
    list.and_then(|words| words.iter().map(text).collect())
        .ok_or_else(|| format!("{name} is a list of texts, such as [\"one\", \"two\"]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(typed: &[&str], config: &[(&str, Value)]) -> Result<Vec<String>, Problem> {
        let typed: Vec<OsString> = ["llmlb", "serve"]
            .iter()
            .chain(typed)
            .map(Into::into)
            .collect();
        let settings: Vec<_> = config
            .iter()
            .zip(1..)
            .map(|((name, value), line)| Setting {
                name: (*name).to_owned(),
                value: value.clone(),
                line,
            })
            .collect();
        let joined = join(&typed, &settings)?.arguments;
        let texts = joined[2..]
            .iter()
            .map(|word| word.to_str().unwrap().to_owned());
        Ok(texts.collect())
    }

    #[test]
    fn what_is_typed_wins() {
        let config = [
            ("max-requests", Value::Integer(64)),
            ("access-log", Value::Boolean(true)),
            ("replace", Value::Boolean(false)),
            ("wait", Value::Boolean(true)),
            ("drain-timeout", Value::Float(0.5)),
            ("health-interval", Value::String("2m".to_owned())),
        ];
        let all = joined(&[], &config).unwrap();
        let expected = [
            "--max-requests=64",
            "--access-log",
            "--wait",
            "--drain-timeout=0.5",
            "--health-interval=2m",
        ];
        assert_eq!(all, expected);
        let typed = ["--max-requests", "5", "--wait", "3", "--access-log"];
        let some = joined(&typed, &config).unwrap();
        assert_eq!(some[..2], ["--drain-timeout=0.5", "--health-interval=2m"]);
        assert_eq!(some[2..], typed);
    }

    #[test]
    fn a_command_is_a_list_of_words() {
        let words = |words: &[&str]| Value::Array(words.iter().map(|w| (*w).into()).collect());
        let config = [
            ("command", words(&["vllm", "serve"])),
            ("port", Value::Integer(1)),
        ];
        assert_eq!(
            joined(&[], &config).unwrap(),
            ["--port=1", "--", "vllm", "serve"]
        );
        let other = joined(&["-p2", "--", "other"], &config).unwrap();
        assert_eq!(other, ["-p2", "--", "other"]);
        let config = [("command", Value::String("vllm serve".to_owned()))];
        assert!(joined(&[], &config).unwrap_err().1.contains("list"));
    }

    #[test]
    fn unknown_names_are_refused_with_what_was_meant() {
        for (name, meant) in [
            ("max_requests", "did you mean 'max-requests'?"),
            ("max-request", "did you mean 'max-requests'?"),
            ("backends", "did you mean 'backend'?"),
            ("frobnicate", "see llmlb serve --help"),
            ("config", "for the command line"),
        ] {
            let config = [("port", Value::Integer(1)), (name, Value::Integer(1))];
            let (line, problem) = joined(&[], &config).unwrap_err();
            assert!(line == 2 && problem.contains(meant), "{name}: {problem}");
        }
    }

    #[test]
    fn every_option_can_stand_in_a_file() {
        let mut command = Cli::command();
        command.build();
        let serve = command.find_subcommand("serve").unwrap();
        for arg in serve.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let name = arg.get_long().unwrap();
            let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let value = if is_flag {
                Value::Boolean(true)
            } else {
                Value::Integer(1)
            };
            let result = joined(&[], &[(name, value)]);
            let wanted = match TYPED_ALONE.contains(&name) || name == "backend" {
                true => continue,
                false if is_flag => format!("--{name}"),
                false => format!("--{name}=1"),
            };
            assert_eq!(result.unwrap(), [wanted]);
        }
    }
}
