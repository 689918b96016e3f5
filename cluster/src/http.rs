//! Requests to whichever member of etcd answers. Apart from what they mean (`etcd.rs`): here are
//! fail-over, time limits, login, TLS, and the end of all of it at an interrupt.
//!
//! A request may be carried out although its answer never came, and is then sent once more to
//! another member. So whatever `etcd.rs` sends may be carried out twice, and late.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tracing::debug;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http::Response};

use crate::clock::BootTime;
use crate::error::{ClusterError, UnreachableEndpoint, code};
use crate::interrupt::{Hooked, Interrupt};
use crate::url::{ClusterUrl, Endpoint};

/// A page of the longest records, in base64.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// How long all members together may take for one request.
const ALL: Duration = Duration::from_secs(9);

/// What all connections to one cluster share.
pub(crate) struct Config {
    pub(crate) url: ClusterUrl,
    tls: Option<TlsConfig>,
    /// From the last login.
    token: Mutex<Option<String>>,
}

impl Config {
    pub(crate) fn new(url: &ClusterUrl) -> Result<Self, ClusterError> {
        Ok(Self {
            tls: url.tls.then(|| tls(url)).transpose()?,
            url: url.clone(),
            token: Mutex::new(None),
        })
    }

    fn token(&self) -> MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections for one purpose.
pub(crate) struct Http {
    pub(crate) config: Arc<Config>,
    agent: Agent,
    interrupt: Option<Interrupt>,
    _hooked: Option<Hooked>,
    /// Who answered last.
    at: AtomicUsize,
    /// For one member.
    attempt: Duration,
}

/// An answer, and when its request was sent: not later than etcd received it.
pub(crate) struct Answer {
    pub(crate) body: Value,
    pub(crate) sent: BootTime,
    pub(crate) address: String,
    /// What time it was there, in whole seconds.
    pub(crate) date: Option<DateTime<Utc>>,
}

/// Why one member gave no answer.
enum Failure {
    /// Another may.
    Here(String),
    /// Another would say the same.
    Everywhere(ClusterError),
    /// The token of the login has ended.
    LoggedOut,
}

impl Http {
    /// Gives each member `attempt` for a request.
    pub(crate) fn new(
        config: &Arc<Config>,
        attempt: Duration,
        interrupt: Option<&Interrupt>,
    ) -> Self {
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .max_idle_connections_per_host(1)
            .max_idle_age(Duration::from_secs(120))
            .user_agent(concat!("llmlb/", env!("CARGO_PKG_VERSION")));
        if let Some(tls) = &config.tls {
            builder = builder.tls_config(tls.clone());
        }
        let agent: Agent = builder.build().into();
        let hooked = interrupt.map(|interrupt| {
            let agent = agent.clone();
            interrupt.hook(move || agent.clone().shutdown())
        });
        Self {
            config: Arc::clone(config),
            agent,
            interrupt: interrupt.cloned(),
            _hooked: hooked,
            // Clients of one cluster spread over its members.
            at: AtomicUsize::new(fastrand::usize(..config.url.endpoints.len())),
            // However many there are: who asks for a list is told within 10 s.
            attempt: attempt.min(ALL / u32::try_from(config.url.endpoints.len()).unwrap_or(1)),
        }
    }

    /// Asks one member after the other, each once.
    pub(crate) fn call(&self, path: &str, body: &Value) -> Result<Answer, ClusterError> {
        let mut failed = Vec::new();
        for _ in 0..self.config.url.endpoints.len() {
            let endpoint = self.endpoint();
            match self.ask(endpoint, path, body) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Everywhere(error)) => return Err(error),
                Err(Failure::LoggedOut) => unreachable_login(endpoint, &mut failed),
                Err(Failure::Here(reason)) => {
                    debug!(%endpoint, path, reason, "no answer from etcd");
                    failed.push(UnreachableEndpoint {
                        address: endpoint.to_string(),
                        reason,
                    });
                }
            }
            self.check_interrupt()?;
            self.turn();
        }
        Err(ClusterError::Unreachable { endpoints: failed })
    }

    /// Asks this member alone.
    pub(crate) fn call_at(
        &self,
        index: usize,
        path: &str,
        body: &Value,
    ) -> Result<Answer, ClusterError> {
        let endpoint = &self.config.url.endpoints[index];
        self.ask(endpoint, path, body)
            .map_err(|failure| match failure {
                Failure::Everywhere(error) => error,
                Failure::Here(reason) => unreachable(endpoint, reason),
                Failure::LoggedOut => unreachable(endpoint, "the login did not last".into()),
            })
    }

    /// An answer without an end, line by line; a read fails after `silence`.
    pub(crate) fn stream(
        &self,
        path: &str,
        body: &Value,
        silence: Duration,
    ) -> Result<impl BufRead + use<>, ClusterError> {
        self.login_if_needed()?;
        let endpoint = self.endpoint();
        let request = self
            .agent
            .post(format!("{}{path}", self.config.url.base(endpoint)))
            .config()
            .timeout_connect(Some(self.attempt))
            .timeout_resolve(Some(self.attempt))
            .timeout_recv_response(Some(self.attempt))
            .timeout_per_read(Some(silence))
            .build()
            .content_type("application/json")
            // Of a member that has lost its leader the stream ends, rather than being still for ever.
            .header("Grpc-Metadata-hasleader", "true");
        let answer = self.authorize(request).send(body.to_string());
        self.check_interrupt()?;
        let answer = answer.map_err(|e| unreachable(endpoint, reason(&e)))?;
        if answer.status() != 200 {
            return Err(match self.refusal(endpoint, answer) {
                Failure::Everywhere(error) => error,
                Failure::Here(reason) => unreachable(endpoint, reason),
                Failure::LoggedOut => {
                    *self.config.token() = None;
                    unreachable(endpoint, "logged out".into())
                }
            });
        }
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    /// Asks another member next time.
    pub(crate) fn turn(&self) {
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    /// The member that is asked next.
    pub(crate) fn address(&self) -> String {
        self.endpoint().to_string()
    }

    fn endpoint(&self) -> &Endpoint {
        let all = &self.config.url.endpoints;
        &all[self.at.load(Ordering::Relaxed) % all.len()]
    }

    pub(crate) fn check_interrupt(&self) -> Result<(), ClusterError> {
        match &self.interrupt {
            Some(interrupt) if interrupt.is_interrupted() => Err(ClusterError::Interrupted),
            _ => Ok(()),
        }
    }

    fn ask(&self, endpoint: &Endpoint, path: &str, body: &Value) -> Result<Answer, Failure> {
        if self.config.url.user.is_some() && self.config.token().is_none() {
            self.login(endpoint)?;
        }
        match self.exchange(endpoint, path, body) {
            Err(Failure::LoggedOut) => {
                self.login(endpoint)?;
                self.exchange(endpoint, path, body)
            }
            other => other,
        }
    }

    fn exchange(&self, endpoint: &Endpoint, path: &str, body: &Value) -> Result<Answer, Failure> {
        let request = self
            .agent
            .post(format!("{}{path}", self.config.url.base(endpoint)))
            .config()
            .timeout_global(Some(self.attempt))
            .build()
            .content_type("application/json");
        let sent = BootTime::now();
        let mut answer = self
            .authorize(request)
            .send(body.to_string())
            .map_err(|e| Failure::Here(reason(&e)))?;
        if answer.status() != 200 {
            return Err(self.refusal(endpoint, answer));
        }
        let date = answer.headers().get("date").and_then(|date| {
            let date = DateTime::parse_from_rfc2822(date.to_str().ok()?).ok()?;
            Some(date.to_utc())
        });
        let bytes = answer
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_vec()
            .map_err(|e| Failure::Here(reason(&e)))?;
        let body = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Here(format!("does not answer as etcd does: {e}")))?;
        Ok(Answer {
            body,
            sent,
            address: endpoint.to_string(),
            date,
        })
    }

    fn authorize<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &*self.config.token() {
            Some(token) => request.header("Authorization", token),
            None => request,
        }
    }

    fn login_if_needed(&self) -> Result<(), ClusterError> {
        if self.config.url.user.is_none() || self.config.token().is_some() {
            return Ok(());
        }
        let endpoint = self.endpoint();
        self.login(endpoint).map_err(|failure| match failure {
            Failure::Everywhere(error) => error,
            Failure::Here(reason) => unreachable(endpoint, reason),
            Failure::LoggedOut => unreachable(endpoint, "refuses the login".into()),
        })
    }

    fn login(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let Some((name, password)) = &self.config.url.user else {
            return Err(Failure::Everywhere(ClusterError::Refused {
                address: endpoint.to_string(),
                code: code::UNAUTHENTICATED,
                message: "a user and a password are asked for".into(),
            }));
        };
        *self.config.token() = None;
        let body = json!({"name": name, "password": password});
        match self.exchange(endpoint, "/v3/auth/authenticate", &body) {
            Ok(answer) => {
                let token = answer.body["token"].as_str().unwrap_or_default();
                *self.config.token() = Some(token.to_owned());
                Ok(())
            }
            // Nobody has to log in there.
            Err(Failure::Everywhere(ClusterError::Refused { message, .. }))
                if message.contains("not enabled") =>
            {
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// What an answer means that is not 200.
    fn refusal(&self, endpoint: &Endpoint, mut answer: Response<Body>) -> Failure {
        let status = answer.status();
        let text = answer
            .body_mut()
            .with_config()
            .limit(64 * 1024)
            .read_to_string()
            .unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        // A stream's error is wrapped in another.
        let body = if body["error"].is_object() {
            &body["error"]
        } else {
            &body
        };
        let number = body["code"].as_i64().or(body["grpc_code"].as_i64());
        let message = body["message"].as_str().or(body["error"].as_str());
        let (Some(number), Some(message)) = (number, message) else {
            return Failure::Here(format!("does not answer as etcd does: HTTP {status}"));
        };
        let number = i32::try_from(number).unwrap_or(-1);
        if number == code::UNAUTHENTICATED {
            return Failure::LoggedOut;
        }
        // Without a leader, or too slow: what another member may know better. Not a full disk.
        if [1, 2, 4, 13, code::UNAVAILABLE].contains(&number) {
            return Failure::Here(message.to_owned());
        }
        Failure::Everywhere(ClusterError::Refused {
            address: endpoint.to_string(),
            code: number,
            message: message.to_owned(),
        })
    }
}

fn unreachable_login(endpoint: &Endpoint, failed: &mut Vec<UnreachableEndpoint>) {
    failed.push(UnreachableEndpoint {
        address: endpoint.to_string(),
        reason: "the login did not last".into(),
    });
}

fn unreachable(endpoint: &Endpoint, reason: String) -> ClusterError {
    ClusterError::Unreachable {
        endpoints: vec![UnreachableEndpoint {
            address: endpoint.to_string(),
            reason,
        }],
    }
}

fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::HostNotFound => "no such host".into(),
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            "connection refused".into()
        }
        ureq::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}

fn tls(url: &ClusterUrl) -> Result<TlsConfig, ClusterError> {
    let roots = match &url.ca {
        Some(file) => certificates(file)?,
        None => rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|cert| Certificate::from_der(cert).to_owned())
            .collect(),
    };
    if roots.is_empty() {
        return Err(ClusterError::Certificate {
            path: "the system's root certificates".into(),
            reason: "there are none; name a file with ca=FILE".into(),
        });
    }
    let identity = url
        .identity
        .as_ref()
        .map(|(cert, key)| {
            Ok(ClientCert::new_with_certs(
                &certificates(cert)?,
                private_key(key)?,
            ))
        })
        .transpose()?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(identity)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, ClusterError> {
    let pem = read(file)?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(cert)) => Some(cert),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(unusable(file, "no certificate in PEM"));
    }
    Ok(found)
}

fn private_key(file: &Path) -> Result<PrivateKey<'static>, ClusterError> {
    PrivateKey::from_pem(&read(file)?).map_err(|_| unusable(file, "no private key in PEM"))
}

fn read(file: &Path) -> Result<Vec<u8>, ClusterError> {
    fs::read(file).map_err(|e| unusable(file, &e.to_string()))
}

fn unusable(file: &Path, reason: &str) -> ClusterError {
    ClusterError::Certificate {
        path: file.display().to_string(),
        reason: reason.to_owned(),
    }
}
