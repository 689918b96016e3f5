//! Takes connections, and divides them among the workers.

mod activity;
mod aside;
mod clients;
mod conversation;
mod crew;
pub(crate) mod entrance;
mod framing;
mod lent;
mod signal;
mod socket;
mod strict;
mod talk;
mod work;

use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::life::Phase;
use crate::shared::Shared;
use crew::Crew;
use work::work;

/// Serves until told to drain, then until nothing is in flight, or told to cut off what is; or until
/// told to close the port, then until the last connection has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    allow_for_bursts(&listener);
    let (crew, here, threads) = Crew::hire(shared, &app)?;
    let serving = async {
        tokio::join!(take_in(listener, crew, shared), work(here, app, shared));
        Ok(())
    };
    tokio::try_join!(serving, threads.done())?;
    Ok(())
}

/// Takes connections for all workers.
async fn take_in(listener: TcpListener, crew: Crew, shared: &Shared) {
    let mut phase = shared.life.phases();
    loop {
        let now = *phase.borrow_and_update();
        let accepted = tokio::select! {
            _ = phase.changed(), if now < Phase::Retired => continue,
            accepted = shared.entrance.accept(&listener), if now == Phase::Serving => accepted,
            else => break,
        };
        let (stream, address, permit) = accepted;
        crew.give(stream, address, permit);
    }
}

/// A burst that the queue of new connections has no room for would wait a second to try again.
#[cfg(unix)]
fn allow_for_bursts(listener: &TcpListener) {
    use nix::sys::socket::{Backlog, listen};
    // It does so already, and goes on if it can't do more.
    let _ = listen(listener, Backlog::MAXCONN);
}

#[cfg(not(unix))]
fn allow_for_bursts(_: &TcpListener) {}
