//! The same stories across machines: one active server per service, and servers that are found.
//!
//! ```no_run
//! use std::time::Duration;
//! use llmlb_lock_cluster::{Cluster, ClusterUrl, Options, Record, Timing};
//!
//! let cluster = Cluster::connect(&ClusterUrl::parse("etcd://h1:2379,h2:2379,h3:2379/llm")?)?;
//! let record = Record::new("chat", "gpu1", 8000);
//!
//! // At most one holder, on any host; a refusal says who it is.
//! let timing = Timing::new(Duration::from_secs(15), Duration::from_secs(4))?;
//! let exclusive = cluster.acquire("chat", Options::new(record.clone(), timing))?;
//!
//! // Found by balancers as long as this lives.
//! let registration = cluster.register(record.with_token(exclusive.token()))?;
//!
//! if let Some(lost) = exclusive.wait_lost(None)? {
//!     eprintln!("end the server, before {:?}: {lost}", exclusive.remaining());
//! }
//! registration.withdraw();
//! exclusive.release()?; // only when the server has ended
//! # Ok::<(), llmlb_lock_cluster::ClusterError>(())
//! ```
//!
//! Everything blocks, every wait takes an [`Interrupt`], and no async runtime is needed: a thread
//! renews, over the JSON gateway of etcd 3.4 or later.
//!
//! | you want to | call |
//! | --- | --- |
//! | be found | [`Cluster::register`] |
//! | find, and follow | [`Cluster::servers`], [`Cluster::watch`] |
//! | be the only one | [`Cluster::acquire`], [`Cluster::acquire_timeout`] |
//! | make sure of it, however this process ends | [`watchdog`] |
//! | stop a server of another host, and be stopped | [`Cluster::request_stop`], [`Cluster::stop_requests`] |
//! | see whether all is well | [`Cluster::check`] |
//!
//! Linux alone for now; on other systems this crate is empty.

#![cfg(target_os = "linux")]
#![deny(unsafe_code)]

mod backoff;
mod check;
mod clock;
mod cluster;
mod election;
mod error;
mod etcd;
mod exclusive;
mod fence;
mod fuse;
mod http;
mod interrupt;
mod keys;
mod record;
mod registration;
mod stop;
mod stream;
mod sys;
mod timing;
mod url;
mod view;
mod watch;
pub mod watchdog;

#[cfg(feature = "planted-faults")]
pub mod faults;

pub use check::{Check, EndpointCheck};
pub use clock::BootTime;
pub use cluster::Cluster;
pub use election::Options;
pub use error::{ClusterError, UnreachableEndpoint};
pub use exclusive::{Exclusive, Lost};
pub use interrupt::Interrupt;
pub use record::{RECORD_VERSION, Record};
pub use registration::Registration;
pub use stop::{StopAnswer, StopRequest, StopRequests, StopTicket};
pub use timing::Timing;
pub use url::ClusterUrl;
pub use view::{Listing, Server, Skipped};
pub use watch::{Change, Watch};
