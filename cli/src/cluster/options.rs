//! What a server can be told of its cluster. On all systems, so that where there is none that is
//! said.

use std::time::Duration;

use clap::Args;

/// How a server is known beyond its machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster (on Linux)")]
pub(crate) struct ClusterArgs {
    /// The etcd that servers of many hosts know each other by: `etcd://HOST:PORT[,...][/PREFIX]`, or
    /// etcds:// for TLS
    #[arg(long, value_name = "URL", env = "LLMLB_CLUSTER")]
    pub(crate) cluster: Option<String>,

    /// Register the server there under this name, as soon as it is ready
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,

    /// Where other hosts reach it; by default http://HOSTNAME:PORT. Its host is the name under which
    /// the server is known
    #[arg(long, value_name = "URL", requires = "service", value_parser = advertised)]
    pub(crate) advertise: Option<String>,

    /// How many requests it takes at a time: its weight
    #[arg(long, value_name = "N", requires = "service",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) slots: Option<u32>,

    /// One active server of the service in the cluster, at most: refused while there is another,
    /// unless --wait makes it a standby; ended before another may start
    #[arg(long, requires = "service")]
    pub(crate) exclusive: bool,

    /// How much longer to wait after an active server that vanished, for what can't check
    /// LLMLB_FENCING_TOKEN
    #[arg(long, value_name = "TIME", requires = "exclusive", default_value = "0",
          value_parser = crate::args::seconds)]
    pub(crate) lock_delay: Duration,

    /// How long it is known after it was killed; with --exclusive: how soon another takes its place
    #[arg(long, value_name = "TIME", requires = "service", default_value = "15", value_parser = ttl)]
    pub(crate) ttl: Duration,
}

impl ClusterArgs {
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "refused elsewhere"))]
    /// Whether this machine is not all that counts.
    pub(crate) fn is_wanted(&self) -> bool {
        self.service.is_some()
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    match crate::args::seconds(text)? {
        ttl if (1.0..=300.0).contains(&ttl.as_secs_f64()) => Ok(ttl),
        _ => Err("not from 1 s to 300 s".to_owned()),
    }
}

fn advertised(text: &str) -> Result<String, String> {
    let shape = || "not an http:// or https:// URL with a host".to_owned();
    let uri: hyper::Uri = text.parse().map_err(|_| shape())?;
    let authority = uri.authority().ok_or_else(shape)?.as_str();
    match uri.scheme_str() {
        Some("http" | "https") if authority.contains('@') => {
            Err("everybody can read it: no user, no password".to_owned())
        }
        Some("http" | "https") => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(shape()),
    }
}
