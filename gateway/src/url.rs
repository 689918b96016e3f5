//! Where a backend is: the URLs that are understood, and why others are not.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use rustls::pki_types::ServerName;

/// Where a backend is: `http[s]://HOST[:PORT][/BASE]`. A base of `/v1` means the same server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    authority: Authority,
    base: String,
    /// Whom its certificate is to name, where it shows one.
    name: Option<ServerName<'static>>,
}

/// Why a URL is none of a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendUrlError {
    /// It is no URL at all.
    #[error("{0}")]
    Syntax(String),
    /// Another scheme, or none.
    #[error("a URL begins with http:// or https://")]
    Scheme,
    /// With TLS, its host would have to stand in a certificate.
    #[error("no certificate is for such a host")]
    Uncertifiable,
    /// It names no host.
    #[error("there is no host in it")]
    Host,
    /// It has a user or a password.
    #[error("credentials have no place in it: give the backend a key")]
    Credentials,
    /// Its port is none.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// It has a query.
    #[error("a query has no place in it")]
    Query,
}

impl FromStr for BackendUrl {
    type Err = BackendUrlError;

    fn from_str(text: &str) -> Result<Self, BackendUrlError> {
        let uri: Uri = text
            .parse()
            .map_err(|e| BackendUrlError::Syntax(format!("{e}")))?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(BackendUrlError::Scheme),
        };
        let parts = uri.into_parts();
        let authority = parts.authority.ok_or(BackendUrlError::Host)?;
        if authority.host().is_empty() {
            return Err(BackendUrlError::Host);
        }
        if authority.as_str().contains('@') {
            return Err(BackendUrlError::Credentials);
        }
        let has_port = authority.as_str().len() > authority.host().len();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(BackendUrlError::Port);
        }
        let path = parts
            .path_and_query
            .unwrap_or(PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(BackendUrlError::Query);
        }
        // The base URL that OpenAI's clients are given means the same server.
        let base = path.path().trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let mut url = Self {
            authority,
            base,
            name: None,
        };
        if is_tls {
            let name = ServerName::try_from(url.host()).map(|name| name.to_owned());
            url.name = Some(name.map_err(|_| BackendUrlError::Uncertifiable)?);
        }
        Ok(url)
    }
}

impl BackendUrl {
    /// As a `Host` header says it.
    pub(crate) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// A name or an address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        bare.unwrap_or(host)
    }

    /// Its port, 80 where none is given, or 443 with TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        let usual = if self.is_tls() { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(usual)
    }

    /// Whether TLS is spoken there.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.name.is_some()
    }

    /// The same, where with TLS its certificate is to name the other's host: for one of its
    /// addresses.
    #[must_use]
    pub fn certified_as(mut self, other: &Self) -> Self {
        if self.is_tls() {
            self.name.clone_from(&other.name);
        }
        self
    }

    /// Whom its certificate is to name, with TLS.
    pub(crate) fn server_name(&self) -> Option<&ServerName<'static>> {
        self.name.as_ref()
    }

    /// Whether these are its scheme and authority, however they are written.
    pub(crate) fn is_at(&self, scheme: &str, authority: &str) -> bool {
        let (own, usual) = if self.is_tls() {
            ("https", 443)
        } else {
            ("http", 80)
        };
        let is_own = |authority: Authority| {
            let port = authority.port_u16().unwrap_or(usual);
            let host = authority.host();
            let has_user = authority.as_str().contains('@');
            !has_user && port == self.port() && host.eq_ignore_ascii_case(self.authority.host())
        };
        scheme.eq_ignore_ascii_case(own) && authority.parse().is_ok_and(is_own)
    }

    /// What comes before the path of each request: empty, or `/BASE`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Where a request's path is found on the backend.
    pub(crate) fn uri(&self, path: &PathAndQuery) -> Uri {
        if self.base.is_empty() {
            return path.clone().into();
        }
        let joined = PathAndQuery::try_from(format!("{}{path}", self.base));
        joined.unwrap_or_else(|_| path.clone()).into()
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        let parse = |text: &str| text.parse::<BackendUrl>();
        for (text, shown) in [
            ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("http://h/", "http://h"),
            ("http://h:1/v1/", "http://h:1"),
            ("http://[::1]:8000/a/v1", "http://[::1]:8000/a"),
            ("https://h/v1", "https://h"),
            ("https://[::1]/a", "https://[::1]/a"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "h",
            "h:1",
            "/",
            "ftp://h",
            "https://-h",
            "http://",
            "http://:1",
            "http://h:0",
            "http://h:99999",
            "http://h:",
            "http://u:p@h",
            "http://h?q",
            "http://a b",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse("http://h").unwrap().port(), 80);
        assert_eq!(parse("https://h").unwrap().port(), 443);
    }
}
