//! The files that certificates and keys are in: read at the start, and those that clients are shown
//! again when they change, as they do every few weeks.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llmlb_gateway::{BackendTls, Options, ServerTls};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::said::Said;

/// How often to look whether they have changed. They are small, and so they are read, which tells
/// more than their times do.
const STEP: Duration = Duration::from_secs(5);

/// A chain of certificates, and its key.
pub(crate) type Pair = (PathBuf, PathBuf);
type Pem = (Vec<u8>, Vec<u8>);

/// What clients are shown, if they are shown any, and how backends are spoken to.
#[derive(Debug)]
pub(crate) struct Certificates {
    shown: Option<Shown>,
    backends: BackendTls,
}

#[derive(Debug)]
struct Shown {
    paths: Pair,
    read: Pem,
    tls: ServerTls,
    again: Notify,
}

/// Where they are.
pub(crate) struct CertificateFiles {
    pub(crate) shown: Option<Pair>,
    /// Who vouches for backends.
    pub(crate) trusted: Option<PathBuf>,
    /// What backends are shown.
    pub(crate) own: Option<Pair>,
}

impl CertificateFiles {
    /// Reads them, which may take its time.
    ///
    /// # Errors
    /// Which file can't be used, and why.
    pub(crate) fn open(self) -> Result<Certificates, String> {
        let Self {
            shown,
            trusted,
            own,
        } = self;
        let mut backends = BackendTls::new();
        if let Some(path) = trusted {
            let trusting = backends.trusting(&read(&path)?);
            backends = trusting.map_err(|e| format!("{}: {e}", path.display()))?;
        }
        if let Some(paths) = own {
            let (certificates, key) = read_pair(&paths)?;
            let showing = backends.showing(&certificates, &key);
            backends = showing.map_err(|e| of_pair(&paths, &e))?;
        }
        Ok(Certificates {
            shown: shown.map(Shown::open).transpose()?,
            backends,
        })
    }
}

impl Certificates {
    pub(crate) fn give(&self, options: Options) -> Options {
        let shown = self.shown.as_ref().map(|shown| shown.tls.clone());
        options.tls(shown).backend_tls(self.backends.clone())
    }

    /// Has them read now, if there are any.
    pub(crate) fn reload(&self) -> bool {
        if let Some(shown) = &self.shown {
            shown.again.notify_one();
        }
        self.shown.is_some()
    }

    /// Shows what is in the files for as long as it is waited for.
    pub(crate) async fn follow(&self) -> Infallible {
        match &self.shown {
            Some(shown) => shown.follow().await,
            None => std::future::pending().await,
        }
    }
}

impl Shown {
    fn open(paths: Pair) -> Result<Self, String> {
        let read = read_pair(&paths)?;
        let tls = ServerTls::new(&read.0, &read.1).map_err(|e| of_pair(&paths, &e))?;
        Ok(Self {
            paths,
            read,
            tls,
            again: Notify::new(),
        })
    }

    async fn follow(&self) -> Infallible {
        let mut last = Ok(self.read.clone());
        let mut warned = Said::new(STEP);
        loop {
            tokio::select! {
                () = sleep(STEP) => {}
                () = self.again.notified() => {}
            }
            let paths = self.paths.clone();
            let read = spawn_blocking(move || read_pair(&paths)).await;
            let now = read.unwrap_or_else(|e| Err(e.to_string()));
            if now == last {
                continue;
            }
            // One of them may come a moment before the other.
            let shown = now
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|(certificates, key)| {
                    let replaced = self.tls.replace(certificates, key);
                    replaced.map_err(|e| of_pair(&self.paths, &e))
                });
            match shown {
                Ok(()) => info!("{} is shown from now on", self.paths.0.display()),
                // Each of the two files that has come is a change, and maybe the same mistake.
                Err(problem) if warned.is_news(problem.clone()) => {
                    warn!("{problem}; clients are shown what was there before");
                }
                Err(_) => {}
            }
            last = now;
        }
    }
}

fn read_pair((certificates, key): &Pair) -> Result<Pem, String> {
    Ok((read(certificates)?, read(key)?))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn of_pair((certificates, key): &Pair, problem: &impl std::fmt::Display) -> String {
    format!(
        "{} and {}: {problem}",
        certificates.display(),
        key.display()
    )
}
