//! A load balancer for servers that speak OpenAI's API.
//!
//! [`Gateway::new`] takes [`Options`]; a channel brings [`BackendSet`]s, now and whenever they
//! change; [`Gateway::serve`] takes clients from a listener until it is told to
//! [drain](Gateway::drain). It knows neither locks nor terminals, and logs through `tracing`.
//!
//! Or it is a part of your own axum or hyper program, beside what that serves itself:
//!
//! ```
//! use axum::{Router, routing::get};
//! use llmlb_gateway::{BackendUrl, Gateway, Options};
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! # async fn ask(port: u16, path: &str) -> std::io::Result<String> {
//! #     let mut client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
//! #     let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
//! #     client.write_all(request.as_bytes()).await?;
//! #     let mut answer = String::new();
//! #     client.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model_server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}", model_server.local_addr()?);
//! # let answers = Router::new().fallback(|| async { "a model's answer" });
//! # tokio::spawn(async move { axum::serve(model_server, answers).await });
//!
//! let gateway = Gateway::new(Options::new())?;
//! let backends = [url.parse::<BackendUrl>()?].into_iter().collect();
//! let (sets, followed) = tokio::sync::watch::channel(backends);
//! gateway.follow(followed).await; // and `sets.send(...)` whenever they change
//!
//! let app = Router::new()
//!     .route("/about", get(|| async { "my program" }))
//!     .fallback_service(gateway.router());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let port = listener.local_addr()?.port();
//! tokio::spawn(async move { axum::serve(listener, app).await });
//! # assert!(ask(port, "/about").await?.ends_with("my program"));
//! # assert!(ask(port, "/v1/chat").await?.ends_with("a model's answer"));
//! # assert!(ask(port, "/health").await?.contains("\"up\""));
//! # drop(sets);
//! # gateway.drain();
//! # assert!(ask(port, "/v1/chat").await?.contains("shutting_down"));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod admission;
mod affinity;
mod auth;
mod backend;
mod body;
mod bygone;
mod catalog;
mod choose;
mod counters;
mod desk;
mod error;
mod follow;
mod form;
mod gateway;
mod history;
mod life;
mod limits;
mod listen;
mod live;
mod made;
#[doc(hidden)]
pub mod measure;
mod metrics;
mod model;
mod naming;
mod ollama;
mod options;
mod outlier;
mod pages;
mod peer;
mod pick;
mod probe;
mod protocol;
mod proxy;
mod queue;
mod remembered;
mod report;
mod roster;
mod set;
mod shared;
mod slots;
mod summary;
mod tls;
mod url;
mod usage;
mod verdict;
mod via;
mod warnings;
mod worker;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use model::fuzzing;

pub use auth::{ApiKey, ApiKeyError};
pub use gateway::Gateway;
pub use limits::raise_descriptor_limit;
pub use naming::{Naming, NamingError};
pub use options::{Affinity, Options};
pub use peer::ClientAddress;
pub use report::ACCESS as ACCESS_LOG;
pub use set::{BackendSet, BackendSpec};
pub use tls::{BackendTls, ServerTls, TlsError};
pub use url::{BackendUrl, BackendUrlError};
