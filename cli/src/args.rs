//! What can be typed: commands, options, their checks and their help. Apart from the commands, which
//! so get values that make sense.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use llmlb_gateway::{Affinity, ApiKey, ApiKeyError, BackendUrlError, Naming, Options};

use crate::backends::{Backend, BackendsFile, Place, Sources};
use crate::certificates::CertificateFiles;
use crate::cluster::options::ClusterArgs;
use crate::completion::live_ports;
use crate::ready::ReadyUrl;
use crate::unrepeated::Unrepeated;

/// One LLM server per port, always: guard it, see it, stop it.
#[derive(Debug, Parser)]
#[command(
    name = "llmlb",
    version,
    override_usage = "llmlb [serve] [OPTIONS] [-- COMMAND...]\n       llmlb <COMMAND> [OPTIONS]",
    after_help = "Without a command, llmlb serves.\n\n\
        Environment:\n  \
        LLMLB_LOCK_DIR  Where the lock files are (default: llmlb in the temporary directory)\n  \
        LLMLB_LOG       What is logged: off, error, warn, info (serve's default), debug, trace\n\n\
        Exit codes: 0 done, 1 refused or failed, 2 wrong arguments;\n  \
        status --port: 3 not running, 4 cannot tell, 5 starting;\n  \
        serve --exclusive: 6 lease lost, and the server ended in time;\n  \
        serve -- COMMAND: the command's own, 126 not executable, 127 not found,\n  \
        128 + N when signal N ended it.\n\n\
        Times are in seconds, or with a unit: 5, 0.5s, 2m, 1h."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Guard a port and serve on it, or run a server command that does
    Serve(Box<ServeArgs>),
    /// Stop a server gracefully
    Stop(StopArgs),
    /// Show what runs
    Status(StatusArgs),
    /// Look whether the cluster can be relied on. On Linux
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Print a shell completion script
    Completions {
        /// The shell to complete in
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    Man {
        /// Of this command
        #[arg(value_parser = ["serve", "stop", "status", "cluster", "completions", "man"])]
        command: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Look at every member of etcd, and try what llmlb does there: one line each, exit code 1 when
    /// something is not right
    Check {
        /// Which etcd; by default LLMLB_CLUSTER
        #[arg(long, value_name = "URL")]
        cluster: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmlb serve --port 8000 --backend http://127.0.0.1:8001 --backend http://gpu2:8000
  llmlb serve --port 8000 -- vllm serve MODEL --host {host} --port {port}
  llmlb serve --port 8000 --replace -- ./server --port {port}

A server command stands behind the --, and has to stay in the foreground. {port} and {host} in its
arguments are replaced ({{port}} is a literal {port}), and it finds them in PORT, HOST, LLMLB_PORT and LLMLB_HOST too.")]
pub(crate) struct ServeArgs {
    /// The port to guard; 0 takes a free one
    #[arg(short, long, default_value = DEFAULT_PORT, env = "LLMLB_PORT", value_parser = port,
          allow_negative_numbers = true)]
    pub(crate) port: u16,

    /// The address to listen on
    #[arg(short = 'H', long, default_value = DEFAULT_HOST, env = "LLMLB_HOST", value_parser = host)]
    pub(crate) host: String,

    /// Wait up to TIME for the present holder of the port to leave, and with --exclusive that of the
    /// service; without TIME, for ever
    #[arg(long, value_name = "TIME", value_parser = seconds, num_args = 0..=1,
          default_missing_value = "4294967295")]
    pub(crate) wait: Option<Duration>,

    /// Take the present holder's place: from a load balancer to a load balancer without closing the
    /// port, else by stopping it gracefully (within --wait, 5 seconds by default)
    #[arg(long)]
    pub(crate) replace: bool,

    /// How long requests in flight, or the COMMAND, may take to end after SIGTERM or SIGINT before
    /// they are cut off, or it is killed
    #[arg(long, value_name = "TIME", default_value = "4", value_parser = seconds)]
    pub(crate) drain_timeout: Duration,

    /// Serve in the background, with output in a log file; returns when the server is ready. Not on
    /// Windows
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// The log of a server in the background, opened anew at SIGHUP; by default serve_PORT.log beside
    /// the lock
    #[arg(long, value_name = "PATH", requires = "detach")]
    #[cfg_attr(not(unix), allow(dead_code, reason = "refused together with --detach"))]
    pub(crate) log_file: Option<PathBuf>,

    /// A file of all this: TOML, with the names of these options and a [[backend]] for each backend.
    /// What is typed, or in the environment, wins
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,

    /// Look whether the arguments and the files they name can be used, and end
    #[arg(long)]
    pub(crate) check: bool,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    #[command(flatten)]
    pub(crate) supervision: SupervisionArgs,

    #[command(flatten)]
    pub(crate) gateway: GatewayArgs,

    /// A server to run under the guard, instead of the built-in one
    #[arg(last = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

/// How a COMMAND is supervised.
#[derive(Debug, Args)]
#[command(next_help_heading = "Supervision (of a COMMAND)")]
pub(crate) struct SupervisionArgs {
    /// Take it for ready when this answers below 400: a path on its port, such as /health, or an
    /// http:// URL; without, when it accepts connections on its port
    #[arg(long, value_name = "PATH|URL", value_parser = ReadyUrl::parse)]
    pub(crate) ready_url: Option<ReadyUrl>,

    /// End it if it is not ready within this time; without, it may take for ever
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) ready_timeout: Option<Duration>,

    /// Start it again when it fails: with another exit code than 0, by a signal that nobody sends on
    /// purpose, or not ready in time. After 1 second, then 2, 4 and so on. Not on Windows
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Restart::No)]
    pub(crate) restart: Restart,

    /// How many times within 10 minutes it is started again
    #[arg(long, value_name = "N", default_value = "5", requires = "restart")]
    #[cfg_attr(
        not(unix),
        allow(dead_code, reason = "refused together with --restart")
    )]
    pub(crate) restart_max: u32,
}

/// When a COMMAND is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    No,
    OnFailure,
}

/// How the built-in server balances.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load balancing (without COMMAND)")]
pub(crate) struct GatewayArgs {
    /// A model server to pass requests on to; may be given many times. dns+http://NAME:PORT is one
    /// for each address of the name, followed as it changes
    #[arg(long, value_name = "URL", env = "LLMLB_BACKENDS", value_delimiter = ',',
          value_parser = Unrepeated(backend))]
    backend: Vec<MaybeBackend>,

    /// A file of model servers, one URL a line; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "PATH", env = "LLMLB_BACKENDS_FILE")]
    backends_file: Option<PathBuf>,

    /// Pass requests on to the servers of this service, as they come and go in the --cluster; several
    /// are separated by commas. On Linux
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "cluster")]
    backends_of: Vec<String>,

    /// The key that clients have to send, as Authorization: Bearer KEY
    #[arg(long, value_name = "KEY", env = "LLMLB_API_KEY", hide_env_values = true,
          value_parser = Unrepeated(key))]
    api_key: Option<ApiKey>,

    /// The key that backends are sent, in place of the clients'
    #[arg(long, value_name = "KEY", env = "LLMLB_BACKEND_API_KEY", hide_env_values = true,
          value_parser = Unrepeated(key))]
    backend_api_key: Option<ApiKey>,

    /// How many requests may be in flight; more are answered with 503
    #[arg(long, value_name = "N", default_value = "1024", value_parser = positive)]
    max_requests: u32,

    /// How many more may wait for a backend, where all that fit have as many as their max; more are
    /// answered with 429. With 0 none waits: 503
    #[arg(long, value_name = "N", default_value = "512")]
    queue: u32,

    /// How long each of them may wait; then the answer is 503
    #[arg(long, value_name = "TIME", default_value = "30", value_parser = seconds)]
    queue_timeout: Duration,

    /// How many threads serve clients; by default one for each core that may be used
    #[arg(long, value_name = "N", value_parser = positive)]
    workers: Option<u32>,

    /// What makes requests go where those before them went: their session (X-Session-ID,
    /// prompt_cache_key or user) or else the beginning of their conversation, the session alone, or
    /// nothing
    #[arg(long, value_name = "BY", value_enum, default_value_t = AffinityBy::Prefix)]
    affinity: AffinityBy,

    /// Another name for a model, which answers to it say then; may be given many times
    #[arg(long, value_name = "NAME=MODEL", value_parser = pair)]
    model_alias: Vec<(String, String)>,

    /// What stands in for a model, in this order, while no backend that serves it is up; may be given
    /// many times
    #[arg(long, value_name = "MODEL=A,B", value_parser = pair)]
    model_fallback: Vec<(String, String)>,

    /// The model for requests that name none
    #[arg(long, value_name = "MODEL")]
    default_model: Option<String>,

    /// Speak TLS to clients, and show them these certificates, the server's own first, in PEM; read
    /// again when they change
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, in PEM
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Who vouches for https:// backends: certificates in PEM, in place of the system's
    #[arg(long, value_name = "PATH")]
    backend_ca: Option<PathBuf>,

    /// What https:// backends are shown that ask for a certificate, in PEM
    #[arg(long, value_name = "PATH", requires = "backend_cert_key")]
    backend_cert: Option<PathBuf>,

    /// The private key of --backend-cert, in PEM
    #[arg(long, value_name = "PATH", requires = "backend_cert")]
    backend_cert_key: Option<PathBuf>,

    /// Log each request at its end, as a line of JSON on stderr
    #[arg(long)]
    access_log: bool,

    /// How long to serve on after SIGTERM or SIGINT while /ready says no: for load balancers above
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = seconds)]
    drain_delay: Duration,

    /// How long connecting to a backend may take
    #[arg(long, value_name = "TIME", default_value = "2", value_parser = seconds)]
    connect_timeout: Duration,

    /// How often to look whether a backend is up
    #[arg(long, value_name = "TIME", default_value = "2", value_parser = interval)]
    health_interval: Duration,

    /// How many good looks in a row bring a backend up that had failed
    #[arg(long, value_name = "N", default_value = "2", value_parser = positive)]
    health_rise: u32,

    /// How many failures in a row bring a backend down
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive)]
    health_fall: u32,

    /// How long a backend that does one thing at a time may work without a word before it is taken
    /// for hung
    #[arg(long, value_name = "TIME", default_value = "300", value_parser = seconds)]
    busy_timeout: Duration,

    /// How long a backend may take, once it has a request, to begin with its answer; without, for
    /// ever
    #[arg(long, value_name = "TIME", value_parser = interval)]
    first_byte_timeout: Option<Duration>,

    /// How long an answer may pause before it is broken off; without, for ever
    #[arg(long, value_name = "TIME", value_parser = interval)]
    stream_idle_timeout: Option<Duration>,
}

/// What makes requests go where those before them went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AffinityBy {
    Prefix,
    Session,
    Off,
}

impl From<AffinityBy> for Affinity {
    fn from(by: AffinityBy) -> Self {
        match by {
            AffinityBy::Prefix => Self::Prefix,
            AffinityBy::Session => Self::Session,
            AffinityBy::Off => Self::Off,
        }
    }
}

impl GatewayArgs {
    /// # Errors
    /// Names of models that make no sense together.
    pub(crate) fn options(&self) -> Result<Options, String> {
        let options = Options::new()
            .api_key(self.api_key.clone())
            .backend_api_key(self.backend_api_key.clone())
            .max_requests(usize::try_from(self.max_requests).unwrap_or(usize::MAX))
            .workers(self.workers())
            .access_log(self.access_log)
            .affinity(self.affinity.into())
            .queue(usize::try_from(self.queue).unwrap_or(usize::MAX))
            .queue_timeout(self.queue_timeout)
            .connect_timeout(self.connect_timeout)
            .health_interval(self.health_interval)
            .health_rise(self.health_rise)
            .health_fall(self.health_fall)
            .busy_timeout(self.busy_timeout)
            .first_byte_timeout(self.first_byte_timeout)
            .stream_idle_timeout(self.stream_idle_timeout)
            .naming(self.naming()?)
            .no_backends_hint(self.no_backends());
        Ok(options)
    }

    /// What to say while there is none.
    fn no_backends(&self) -> &'static str {
        let is_named = self.backend.iter().any(Option::is_some) || !self.backends_of.is_empty();
        if is_named {
            "no backends yet: the names and services given stand for none so far"
        } else {
            "no backends: start llmlb serve with --backend URL"
        }
    }

    fn naming(&self) -> Result<Naming, String> {
        let mut naming = Naming::new();
        for (alias, model) in &self.model_alias {
            let more = naming.alias(alias, model);
            naming = more.map_err(|problem| format!("--model-alias: {problem}"))?;
        }
        for (model, others) in &self.model_fallback {
            let more = naming.fallback(model, others.split(','));
            naming = more.map_err(|problem| format!("--model-fallback: {problem}"))?;
        }
        match &self.default_model {
            Some(model) => naming
                .default_model(model)
                .map_err(|problem| format!("--default-model: {problem}")),
            None => Ok(naming),
        }
    }

    /// Of the etcd at `cluster`, where it is asked, and with those of the configuration.
    pub(crate) fn sources(&self, config: Option<BackendsFile>, cluster: Option<&str>) -> Sources {
        let file = self.backends_file.as_deref();
        // An empty variable is one that is not set.
        let file = file.filter(|path| !path.as_os_str().is_empty());
        let file = file.map(BackendsFile::new);
        Sources {
            listed: self.backend.iter().flatten().cloned().collect(),
            files: config.into_iter().chain(file).collect(),
            services: self.backends_of.clone(),
            cluster: cluster.map(str::to_owned),
        }
    }

    fn workers(&self) -> NonZeroUsize {
        let wanted = self.workers.and_then(|count| usize::try_from(count).ok());
        let wanted = wanted.and_then(NonZeroUsize::new);
        wanted
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }

    pub(crate) fn drain_delay(&self) -> Duration {
        self.drain_delay
    }

    /// What clients are shown, and backends are.
    pub(crate) fn certificate_files(&self) -> CertificateFiles {
        let pair = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            certificate.clone().zip(key.clone())
        };
        CertificateFiles {
            shown: pair(&self.tls_cert, &self.tls_key),
            trusted: self.backend_ca.clone(),
            own: pair(&self.backend_cert, &self.backend_cert_key),
        }
    }

    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
    pub(crate) fn speaks_tls(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Whether clients have to show a key.
    pub(crate) fn asks_for_key(&self) -> bool {
        self.api_key.is_some()
    }
}

/// What a wait without a time is.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

const DEFAULT_PORT: &str = "32768";
const DEFAULT_HOST: &str = "127.0.0.1";

/// An empty variable is one that is not set.
fn port(text: &str) -> Result<u16, String> {
    let text = if text.is_empty() { DEFAULT_PORT } else { text };
    text.parse()
        .map_err(|_| "not a port, which is a number from 0 to 65535".to_owned())
}

/// An empty variable is one that is not set.
fn host(text: &str) -> Result<String, Infallible> {
    let text = if text.is_empty() { DEFAULT_HOST } else { text };
    Ok(text.to_owned())
}

/// Why an option that was given by hand does nothing: it is for the built-in server, or for a
/// COMMAND, and the other runs.
pub(crate) fn without_effect(matches: &ArgMatches) -> Option<String> {
    let serve = matches.subcommand_matches("serve")?;
    if serve.value_source("cluster") == Some(ValueSource::CommandLine)
        && !serve.contains_id("service")
        && !serve.contains_id("backends_of")
    {
        return Some(
            "--cluster does nothing without --service NAME or --backends-of NAME".to_owned(),
        );
    }
    let has_command = serve.get_many::<OsString>("command").is_some();
    let others = match has_command {
        true => GatewayArgs::augment_args(clap::Command::new("")),
        false => SupervisionArgs::augment_args(clap::Command::new("")),
    };
    let mut given = others.get_arguments().filter(|arg| {
        let source = serve.value_source(arg.get_id().as_str());
        source == Some(ValueSource::CommandLine)
    });
    let option = given.find_map(|arg| Some(format!("--{}", arg.get_long()?)))?;
    Some(match has_command {
        true => not_for_commands(&option),
        false => format!("{option} is for a COMMAND, and does nothing for the built-in server"),
    })
}

pub(crate) fn not_for_commands(option: &str) -> String {
    format!(
        "{option} is for the built-in server and does nothing for a COMMAND: pass what it needs to \
         the COMMAND itself"
    )
}

/// None where nothing is written, as in an empty LLMLB_BACKENDS.
type MaybeBackend = Option<Backend>;

fn backend(text: &str) -> Result<MaybeBackend, String> {
    match text.trim() {
        "" => Ok(None),
        url => url
            .parse()
            .map(|place: Place| Some(Backend::new(place)))
            .map_err(|problem| match problem {
                // What is before an @ may be a password.
                BackendUrlError::Credentials => {
                    "credentials belong into --backend-api-key".to_owned()
                }
                problem if url.contains('@') => problem.to_string(),
                problem => format!("'{url}': {problem}"),
            }),
    }
}

fn key(text: &str) -> Result<ApiKey, String> {
    ApiKey::parse(text).map_err(|problem: ApiKeyError| problem.to_string())
}

#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("which")),
    override_usage = "llmlb stop [OPTIONS] <PORT|--port <PORT>|--all>\n       \
                            llmlb stop --cluster [<URL>] --service <NAME> [OPTIONS]"
)]
pub(crate) struct StopArgs {
    /// The port whose server to stop
    #[arg(value_name = "PORT", group = "which", conflicts_with = "cluster",
          required_unless_present_any = ["port", "all", "cluster"],
          add = ArgValueCandidates::new(live_ports),
          value_parser = clap::value_parser!(u16).range(1..))]
    positional: Option<u16>,

    /// The same
    #[arg(short, long, group = "which", add = ArgValueCandidates::new(live_ports),
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// Stop all servers that you may stop, side by side
    #[arg(long, group = "which")]
    pub(crate) all: bool,

    /// How long a server may take
    #[arg(short, long, value_name = "TIME", default_value = "5", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// Kill it when the time has run out
    #[arg(short, long, conflicts_with = "cluster")]
    pub(crate) force: bool,

    /// Stop servers of any host, by their service, with the etcd at URL, or at LLMLB_CLUSTER. On Linux
    #[arg(long, value_name = "URL", num_args = 0..=1, requires = "service", help_heading = CLUSTER)]
    pub(crate) cluster: Option<Option<String>>,

    /// Of this service; of several servers only with --all, or named by --host and --port
    #[arg(long, value_name = "NAME", requires = "cluster", help_heading = CLUSTER)]
    pub(crate) service: Option<String>,

    /// On this host
    #[arg(long, value_name = "HOST", requires = "cluster", help_heading = CLUSTER)]
    pub(crate) host: Option<String>,
}

/// Above the options for more than one machine.
const CLUSTER: &str = "Cluster";

impl StopArgs {
    /// The port, however it was given.
    pub(crate) fn named(mut self) -> Self {
        self.port = self.port.or(self.positional);
        self
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show this port alone, and tell by the exit code: 0 running, 3 not running, 4 cannot tell,
    /// 5 starting
    #[arg(value_name = "PORT", conflicts_with = "port", add = ArgValueCandidates::new(live_ports),
          value_parser = clap::value_parser!(u16).range(1..))]
    positional: Option<u16>,

    /// The same
    #[arg(short, long, add = ArgValueCandidates::new(live_ports),
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,

    /// Show left-over and unreadable lock files too
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Show it anew every second until Ctrl-C
    #[arg(short, long)]
    pub(crate) watch: bool,

    /// Wait up to TIME until the server of the port runs
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "watch")]
    pub(crate) wait: Option<Duration>,

    /// Show the servers of all hosts that the etcd at URL, or at LLMLB_CLUSTER, knows. On Linux
    #[arg(long, value_name = "URL", num_args = 0..=1, help_heading = CLUSTER,
          conflicts_with_all = ["positional", "port", "all", "wait"])]
    pub(crate) cluster: Option<Option<String>>,
}

impl StatusArgs {
    /// The port, however it was given.
    pub(crate) fn named(mut self) -> Self {
        self.port = self.port.or(self.positional);
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// A table of all that can be told
    Wide,
    Json,
}

/// `5`, `0.5s`, `2m` or `1h`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let with_unit = units
        .iter()
        .find_map(|&(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, unit) = with_unit.unwrap_or((text, 1.0));
    let number: f64 = number
        .parse()
        .map_err(|_| "not a time, such as 5, 0.5s, 2m or 1h".to_owned())?;
    let duration = Duration::try_from_secs_f64(number * unit).map_err(|e| e.to_string())?;
    // No clock reaches further than this for sure.
    Ok(duration.min(Duration::from_secs(u32::MAX.into())))
}

/// Long enough not to do nothing else.
fn interval(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        interval if interval < Duration::from_millis(10) => Err("less than 0.01".to_owned()),
        interval => Ok(interval),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no = in it")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn positive(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a number from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// The program's arguments with `serve` put in where no command is named.
pub(crate) fn with_default_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let names_none = match args.get(1).map(OsString::as_os_str) {
        None => true,
        Some(first) => {
            let general = ["-h", "--help", "-V", "--version"].map(OsStr::new);
            first.as_encoded_bytes().starts_with(b"-") && !general.contains(&first)
        }
    };
    if names_none {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = std::iter::once("llmlb").chain(args.iter().copied());
        Cli::try_parse_from(with_default_command(args.map(OsString::from)))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        for args in [&[][..], &["--port", "1"], &["-p1", "--", "stop"]] {
            let cli = parse(args).unwrap();
            assert!(matches!(cli.command, Command::Serve(_)), "{args:?}");
        }
        let cli = parse(&["status"]).unwrap();
        assert!(matches!(cli.command, Command::Status(_)));
    }

    #[test]
    fn times_have_units() {
        for (text, expected) in [
            ("5", 5.0),
            ("0.5s", 0.5),
            ("2m", 120.0),
            ("1h", 3600.0),
            ("250ms", 0.25),
        ] {
            assert_eq!(
                seconds(text),
                Ok(Duration::from_secs_f64(expected)),
                "{text}"
            );
        }
        for text in ["", "s", "5 s", "5d", "-1s", "1e300h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for args in [
            &["stop"][..],
            &["stop", "--port", "0"],
            &["stop", "--port", "65536"],
            &["stop", "--port", "1", "--all"],
            &["stop", "--port", "1", "--timeout", "-1"],
            &["stop", "--port", "1", "--timeout", "NaN"],
            &["stop", "--port", "1", "--timeout", "1e300"],
            &["serve", "--port", "http"],
            &["serve", "--port", "-1"],
            &["serve", "--backend", "gpu2:8000"],
            &["serve", "--backend", "http://gpu1,ftp://gpu2"],
            &["serve", "--api-key", ""],
            &["serve", "--max-requests", "0"],
            &["serve", "--health-interval", "0"],
            &["frobnicate"],
        ] {
            let error = parse(args).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(crate::exit::USAGE), "{args:?}");
        }
    }
}
