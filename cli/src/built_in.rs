//! The built-in server: joins the load balancer to the lock, the arguments, the signals.

use std::io;
use std::net::TcpListener;

use llmlb_gateway::{Gateway, Options, raise_descriptor_limit};
use llmlb_lock_core::{LockInfo, ServerLock};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::guard::{announce_shutdown, notify_ready, watch as watch_lock};
use crate::signals::Shutdown;

pub(crate) async fn run(
    lock: ServerLock,
    listener: TcpListener,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot serve: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() && !args.gateway.asks_for_key() {
        warn!(
            "{address} can be reached from other machines, and nobody is asked for a key: set \
             --api-key, or listen on 127.0.0.1"
        );
    }
    raise_descriptor_limit();
    let options = described(args.gateway.options(), lock.info());
    let gateway = Gateway::new(options).map_err(failed)?;
    let backends = args.gateway.backends();
    let has_none = backends.is_empty();
    let (_sets, followed) = watch::channel(backends);
    tokio::select! {
        () = gateway.follow(followed) => {}
        _ = shutdown.recv() => {
            announce_shutdown();
            lock.release()?;
            return Ok(exit::OK);
        }
    }
    let mut server = std::pin::pin!(gateway.serve(listener));
    info!("listening on {address}");
    if has_none {
        warn!("No model servers to pass requests on to: see --backend");
    }
    notify_ready();
    tokio::select! {
        never = watch_lock(&lock) => match never {},
        result = &mut server => {
            result.map_err(failed)?;
            return Err(Failure::new(exit::FAILURE, "the server ended by itself"));
        }
        _ = shutdown.recv() => {}
    }
    announce_shutdown();
    gateway.drain();
    let mut code = exit::OK;
    let finished = tokio::select! {
        // The server first, in any case: it closes its port.
        biased;
        result = &mut server => {
            result.map_err(failed)?;
            true
        }
        () = tokio::time::sleep(args.drain_timeout) => {
            warn!("Requests still in flight after {:?} were cut off", args.drain_timeout);
            false
        }
        signal = shutdown.recv() => {
            warn!("Second signal, ending at once");
            code = exit::signalled(signal);
            false
        }
    };
    if !finished {
        gateway.cut();
        server.await.map_err(failed)?;
    }
    lock.release()?;
    Ok(code)
}

/// `/health` says what the lock file does.
fn described(options: Options, info: &LockInfo) -> Options {
    let fields = match serde_json::to_value(info) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let told = ["pid", "started_at", "port"];
    told.into_iter()
        .filter_map(|name| Some((name, fields.get(name)?.clone())))
        .fold(options, |options, (name, value)| {
            options.describe(name, value)
        })
}
