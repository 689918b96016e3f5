//! Which etcd, and below which prefix: what `LLMLB_CLUSTER` holds.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::ClusterError;

const DEFAULT_PORT: u16 = 2379;
const DEFAULT_PREFIX: &str = "llmlb";
const MAX_ENDPOINTS: usize = 32;

/// `etcd://HOST[:PORT][,HOST[:PORT]...][/PREFIX]`, or `etcds://` for TLS, which may end with
/// `?ca=FILE&cert=FILE&key=FILE`.
///
/// The port is 2379 unless given, the prefix `llmlb`. Without `ca` the system's root certificates
/// are trusted. A user and a password are never part of it, as command lines can be read by all
/// users of a machine: see [`with_user`](Self::with_user).
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterUrl {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) tls: bool,
    pub(crate) prefix: String,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) user: Option<(String, String)>,
}

/// One etcd member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// IPv6 addresses without brackets.
    host: String,
    port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl ClusterUrl {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidUrl`], which says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, ClusterError> {
        read(url).map_err(|reason| ClusterError::InvalidUrl {
            // What stands before an @ may be a password.
            url: match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
                _ => url.to_owned(),
            },
            reason,
        })
    }

    /// Logs in as this user of etcd.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), password.into()));
        self
    }

    /// Trusts the certificates in this PEM file, and no others.
    #[must_use]
    pub fn with_ca(mut self, file: impl AsRef<Path>) -> Self {
        self.ca = Some(file.as_ref().to_owned());
        self
    }

    /// Shows etcd this certificate: a PEM file with the chain, and one with its key.
    #[must_use]
    pub fn with_certificate(mut self, cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.identity = Some((cert.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// Everything is kept in etcd below `/PREFIX/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn base(&self, endpoint: &Endpoint) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{endpoint}")
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "etcds://" } else { "etcd://" })?;
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.prefix)?;
        let ca = self.ca.as_ref().map(|file| ("ca", file));
        let identity = self.identity.as_ref();
        let identity = identity.map(|(cert, key)| [("cert", cert), ("key", key)]);
        let files = ca.into_iter().chain(identity.into_iter().flatten());
        for (i, (name, file)) in files.enumerate() {
            let mark = if i == 0 { '?' } else { '&' };
            write!(f, "{mark}{name}={}", file.display())?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterUrl({self})")
    }
}

fn read(url: &str) -> Result<ClusterUrl, String> {
    let (tls, rest) = match url.split_once("://") {
        Some(("etcd", rest)) => (false, rest),
        Some(("etcds", rest)) => (true, rest),
        _ => return Err("it has to begin with etcd:// or etcds://".into()),
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if hosts.contains('@') {
        return Err(
            "a user and a password don't belong into it, where all users of the machine \
                    can read them: set LLMLB_CLUSTER_USER and LLMLB_CLUSTER_PASSWORD"
                .into(),
        );
    }
    let endpoints = hosts
        .split(',')
        .map(endpoint)
        .collect::<Result<Vec<_>, _>>()?;
    if endpoints.len() > MAX_ENDPOINTS {
        return Err(format!("at most {MAX_ENDPOINTS} addresses"));
    }
    let mut url = ClusterUrl {
        endpoints,
        tls,
        prefix: self::prefix(prefix)?,
        ca: None,
        identity: None,
        user: None,
    };
    if let Some(query) = query {
        files(query, &mut url)?;
    }
    Ok(url)
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest
            .split_once(']')
            .ok_or_else(|| format!("{text:?} lacks its ]"))?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| format!("{host:?} is no IPv6 address"))?;
        (
            host,
            port.strip_prefix(':').or(port.is_empty().then_some("")),
        )
    } else {
        match text.split_once(':') {
            Some((host, port)) if !port.is_empty() && !port.contains(':') => (host, Some(port)),
            Some(_) => (text, None),
            None => (text, Some("")),
        }
    };
    let port = match port {
        Some("") => DEFAULT_PORT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| format!("{port:?} is no port"))?,
        None => {
            return Err(format!(
                "{text:?} is no HOST:PORT (IPv6 addresses stand in [])"
            ));
        }
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(valid) {
        return Err(format!("{host:?} is no host"));
    }
    Ok(Endpoint {
        host: host.to_owned(),
        port,
    })
}

fn prefix(text: &str) -> Result<String, String> {
    let text = text.trim_matches('/');
    if text.is_empty() {
        return Ok(DEFAULT_PREFIX.into());
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if text.len() > 200 || !text.chars().all(valid) || text.split('/').any(str::is_empty) {
        return Err(format!(
            "the prefix {text:?} may have letters, digits, -, ., _ and single slashes, 200 in all"
        ));
    }
    Ok(text.into())
}

fn files(query: &str, url: &mut ClusterUrl) -> Result<(), String> {
    if !url.tls {
        return Err("certificates are for etcds:// alone".into());
    }
    let (mut cert, mut key) = (None, None);
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("ca", file)) if !file.is_empty() => url.ca = Some(file.into()),
            Some(("cert", file)) if !file.is_empty() => cert = Some(PathBuf::from(file)),
            Some(("key", file)) if !file.is_empty() => key = Some(PathBuf::from(file)),
            _ => return Err(format!("{pair:?} is none of ca=FILE, cert=FILE, key=FILE")),
        }
    }
    url.identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("cert and key are given together".into()),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_a_default() {
        let url = ClusterUrl::parse("etcd://h1").unwrap();
        assert_eq!(url.to_string(), "etcd://h1:2379/llmlb");
        assert_eq!(url.base(&url.endpoints[0]), "http://h1:2379");
    }

    #[test]
    fn all_of_it_is_read() {
        let url = "etcds://h1:1,[::1]:2,10.0.0.3/a/b?ca=/ca.pem&cert=/c.pem&key=/k.pem";
        let url = ClusterUrl::parse(url).unwrap();
        let whole = "etcds://h1:1,[::1]:2,10.0.0.3:2379/a/b?ca=/ca.pem&cert=/c.pem&key=/k.pem";
        assert_eq!(url.to_string(), whole);
        assert_eq!(url.ca, Some("/ca.pem".into()));
        assert_eq!(url.identity, Some(("/c.pem".into(), "/k.pem".into())));
    }

    #[test]
    fn a_malformed_one_is_refused_with_the_reason() {
        for (bad, reason) in [
            ("h1:2379", "etcd://"),
            ("http://h1", "etcd://"),
            ("etcd://", "no host"),
            ("etcd://h1,,h2", "no host"),
            ("etcd://h1:0", "no port"),
            ("etcd://h1:99999", "no port"),
            ("etcd://h1:x", "no port"),
            ("etcd://h1:", "HOST:PORT"),
            ("etcd://::1", "in []"),
            ("etcd://[::1", "]"),
            ("etcd://[::g]", "IPv6"),
            ("etcd://h1/a//b", "prefix"),
            ("etcd://h1/a b", "prefix"),
            ("etcd://h1?ca=x", "etcds://"),
            ("etcds://h1?cert=x", "together"),
            ("etcds://h1?x=y", "ca=FILE"),
            ("etcd://h 1", "no host"),
        ] {
            let error = ClusterUrl::parse(bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        let error = ClusterUrl::parse("etcd://root:secret@h1").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        let url = ClusterUrl::parse("etcd://h1")
            .unwrap()
            .with_user("u", "secret");
        assert!(!format!("{url:?} {url}").contains("secret"));
    }
}
