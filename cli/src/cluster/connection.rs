//! The way to etcd: `--cluster` or LLMLB_CLUSTER, and who logs in. Apart from what is asked there.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::thread;
use std::time::Duration;

use llmlb_lock_cluster::{Cluster, ClusterError, ClusterUrl, Interrupt};

use crate::exit::{self, Failure};

pub(crate) const URL_ENV: &str = "LLMLB_CLUSTER";
pub(crate) const USER_ENV: &str = "LLMLB_CLUSTER_USER";
pub(crate) const PASSWORD_ENV: &str = "LLMLB_CLUSTER_PASSWORD";
pub(crate) const PASSWORD_FILE_ENV: &str = "LLMLB_CLUSTER_PASSWORD_FILE";

/// How long etcd gets to answer someone who waits at a terminal.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A way to etcd that has not been tried yet, and what to call it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) cluster: Cluster,
    pub(crate) url: ClusterUrl,
}

impl Connection {
    /// To the URL that was given, else to that of the environment. Asks nobody yet.
    pub(crate) fn open(given: Option<&str>) -> Result<Self, Failure> {
        let url = url(given)?;
        let cluster = Cluster::connect(&url).map_err(failure)?;
        Ok(Self { cluster, url })
    }

    /// Asks etcd something, for at most [`PATIENCE`]: `ask` ends when its interrupt is triggered.
    pub(crate) fn ask<T>(
        &self,
        ask: impl FnOnce(&Cluster, &Interrupt) -> Result<T, ClusterError>,
    ) -> Result<T, Failure> {
        let (over, answered) = (Interrupt::new(), Interrupt::new());
        let (late, done) = (over.clone(), answered.clone());
        let timer = thread::Builder::new()
            .name("llmlb-patience".into())
            .spawn(move || {
                if !done.sleep(PATIENCE) {
                    late.interrupt();
                }
            })
            .map_err(|e| Failure::new(exit::FAILURE, format!("cannot start a thread: {e}")))?;
        let result = ask(&self.cluster, &over);
        answered.interrupt();
        let _ = timer.join();
        result.map_err(|e| match e {
            ClusterError::Interrupted => self.silent(),
            e => failure(e),
        })
    }

    /// The URL as it is typed into a shell.
    pub(crate) fn typed(&self) -> String {
        let url = self.url.to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
        match url.chars().all(plain) {
            true => url,
            false => format!("'{}'", url.replace('\'', "'\\''")),
        }
    }

    /// etcd has not answered within [`PATIENCE`].
    pub(crate) fn silent(&self) -> Failure {
        Failure::new(
            exit::FAILURE,
            format!(
                "Cannot reach etcd: {} did not answer within {PATIENCE:?}",
                self.url
            ),
        )
    }
}

/// What is typed wrong is a usage error, all else has failed.
pub(crate) fn failure(e: ClusterError) -> Failure {
    let code = match e {
        ClusterError::InvalidUrl { .. }
        | ClusterError::InvalidTiming { .. }
        | ClusterError::InvalidRecord { .. } => exit::USAGE,
        _ => exit::FAILURE,
    };
    Failure::new(code, e)
}

/// Which etcd, and as whom.
fn url(given: Option<&str>) -> Result<ClusterUrl, Failure> {
    let from_env = variable(URL_ENV)?;
    let url = given
        .filter(|url| !url.is_empty())
        .or(from_env.as_deref())
        .ok_or_else(|| {
            usage(format!(
                "which etcd? Give --cluster etcd://HOST:PORT, or set {URL_ENV}"
            ))
        })?;
    let url = ClusterUrl::parse(url).map_err(failure)?;
    Ok(match login()? {
        Some((user, password)) => url.with_user(user, password),
        None => url,
    })
}

fn login() -> Result<Option<(String, String)>, Failure> {
    let password = match (variable(PASSWORD_ENV)?, variable(PASSWORD_FILE_ENV)?) {
        (Some(_), Some(_)) => {
            return Err(usage(format!(
                "{PASSWORD_ENV} and {PASSWORD_FILE_ENV} are both set: leave one"
            )));
        }
        (Some(password), None) => Some(password),
        (None, Some(file)) => Some(password_of(&file)?),
        (None, None) => None,
    };
    match (variable(USER_ENV)?, password) {
        (Some(user), Some(password)) => Ok(Some((user, password))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(usage(format!(
            "{USER_ENV} is set, and no password: set {PASSWORD_ENV} or {PASSWORD_FILE_ENV}"
        ))),
        (None, Some(_)) => Err(usage(format!(
            "a password for etcd is set, and no user: set {USER_ENV}"
        ))),
    }
}

/// Without the line's end that editors write.
fn password_of(file: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(file).map_err(|e| {
        let message = format!("cannot read {file}, which {PASSWORD_FILE_ENV} names: {e}");
        Failure::new(exit::FAILURE, message)
    })?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(usage(format!(
            "{file}, which {PASSWORD_FILE_ENV} names, is empty"
        )));
    }
    Ok(password.to_owned())
}

/// An empty variable is one that is not set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    let value = env::var_os(name).filter(|value| value != OsStr::new(""));
    value
        .map(|value| value.into_string())
        .transpose()
        // It may be a password, so it is not shown.
        .map_err(|_| usage(format!("{name} is not UTF-8")))
}

fn usage(message: String) -> Failure {
    Failure::new(exit::USAGE, message)
}
