//! The door: what can be asked of a cluster.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::check::Check;
use crate::election::{self, Options, Patience};
use crate::error::ClusterError;
use crate::exclusive::Exclusive;
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::keys::Keys;
use crate::record::{Record, check_service};
use crate::registration::Registration;
use crate::stop::{StopRequests, StopTicket};
use crate::url::ClusterUrl;
use crate::view::{self, Listing};
use crate::watch::Watch;

/// For one request to one member of etcd, where no lease hangs on it.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long a registration outlives its server, if that is killed.
const REGISTRATION_TTL: Duration = Duration::from_secs(15);

/// Servers of many hosts that know of each other by one etcd, below one prefix.
///
/// Cheap to clone. Connections are made when they are needed.
#[derive(Clone)]
pub struct Cluster {
    config: Arc<Config>,
    keys: Keys,
}

impl Cluster {
    /// Reads the certificates. etcd is not asked yet: a server that only registers must start
    /// while etcd is away.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Certificate`].
    pub fn connect(url: &ClusterUrl) -> Result<Self, ClusterError> {
        Ok(Self {
            keys: Keys::new(url.prefix()),
            config: Arc::new(Config::new(url)?),
        })
    }

    /// Lets a server be found, from now until the registration is dropped. Does not wait for etcd:
    /// see [`Registration::wait_registered`].
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`].
    pub fn register(&self, record: Record) -> Result<Registration, ClusterError> {
        self.register_with_ttl(record, REGISTRATION_TTL)
    }

    /// The same, for a server that is to be off the list `ttl` after it was killed (whole seconds,
    /// 15 by default).
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`].
    pub fn register_with_ttl(
        &self,
        record: Record,
        ttl: Duration,
    ) -> Result<Registration, ClusterError> {
        let (service, instance) = (&record.service, record.instance());
        let key = self.keys.server(service, &instance);
        let leaving = self.keys.leaving(service, &instance);
        Registration::start(&self.config, key, leaving, record, ttl)
    }

    /// Makes this server the active one of `service`; does not wait for another that is.
    ///
    /// After one that vanished without goodbye (killed, cut off) it waits until that one's time is
    /// over on this machine's clock, at most its TTL.
    ///
    /// # Errors
    ///
    /// - [`ClusterError::AlreadyActive`] and [`ClusterError::ActiveUnknown`]: another is.
    /// - [`ClusterError::Unreachable`] and what else etcd may say.
    /// - [`ClusterError::Interrupted`] by the options' interrupt.
    pub fn acquire(&self, service: &str, options: Options) -> Result<Exclusive, ClusterError> {
        election::acquire(&self.config, &self.keys, service, options, Patience::None)
    }

    /// The same, waiting as a standby until the active one ends; for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), of the last try, and [`ClusterError::NotYet`].
    pub fn acquire_timeout(
        &self,
        service: &str,
        options: Options,
        timeout: Option<Duration>,
    ) -> Result<Exclusive, ClusterError> {
        let patience = timeout.map_or(Patience::ForEver, |timeout| {
            // Further than time goes is for ever.
            Instant::now()
                .checked_add(timeout)
                .map_or(Patience::ForEver, Patience::Until)
        });
        election::acquire(&self.config, &self.keys, service, options, patience)
    }

    /// Every server there is, of one service or of all, at one moment.
    ///
    /// # Errors
    ///
    /// What etcd says. A foreign record is none: see [`Listing::skipped`].
    pub fn servers(
        &self,
        service: Option<&str>,
        interrupt: &Interrupt,
    ) -> Result<Listing, ClusterError> {
        self.check_service(service)?;
        let http = Http::new(&self.config, ATTEMPT, Some(interrupt));
        let mut kvs = http.list(&self.keys.servers(service))?.kvs;
        // After those, so that none is missed on its way.
        kvs.extend(http.list(&self.keys.all_leaving(service))?.kvs);
        kvs.extend(http.list(&self.keys.exclusive(service))?.kvs);
        Ok(view::listing(&self.keys, &kvs))
    }

    /// Follows the servers of one service, or of all: a snapshot, then each change, through
    /// outages and compactions. Those that are active and not registered yet are not among them.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`] for a name that no service has.
    pub fn watch(&self, service: Option<&str>) -> Result<Watch, ClusterError> {
        self.check_service(service)?;
        Watch::start(&self.config, &self.keys, service)
    }

    /// Asks the llmlb that guards this server (one of [`servers`](Self::servers)) to stop it.
    /// `from` is this host's name, for its log.
    ///
    /// # Errors
    ///
    /// What etcd says; [`ClusterError::Interrupted`].
    pub fn request_stop(
        &self,
        server: &Record,
        from: &str,
        interrupt: &Interrupt,
    ) -> Result<StopTicket, ClusterError> {
        StopTicket::write(&self.config, &self.keys, server, from, interrupt)
    }

    /// Hears of requests to stop this server.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Thread`].
    pub fn stop_requests(&self, server: &Record) -> Result<StopRequests, ClusterError> {
        StopRequests::start(&self.config, &self.keys, server)
    }

    /// Looks at every member of etcd, and tries what llmlb does there.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`] alone: what fails is in the [`Check`].
    pub fn check(&self, interrupt: &Interrupt) -> Result<Check, ClusterError> {
        Check::run(&self.config, &self.keys, interrupt)
    }

    fn check_service(&self, service: Option<&str>) -> Result<(), ClusterError> {
        service
            .map_or(Ok(()), check_service)
            .map_err(|reason| ClusterError::InvalidRecord {
                what: "service name",
                reason,
            })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({})", self.config.url)
    }
}
