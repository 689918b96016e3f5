//! What may be said to a client's connection from elsewhere, whatever it is about.

use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::clients::Client;
use crate::life::Phase;

/// How long a client of a server that has given up its port may idle. It asks elsewhere when the next
/// answer tells it to; closed on the instant, it could be about to ask here.
const LINGER: Duration = Duration::from_secs(5);

/// For what is about to happen anyway.
pub(super) const HURRY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Its client has left though its request is in flight.
    Left,
    /// Nothing is in flight any more.
    Closing,
    /// What is in flight ends now.
    Cut,
    /// The port was given up a while ago.
    LetGo,
    /// Its descriptor is needed elsewhere.
    MakeRoom,
}

/// Waits for the next. One that `is_let_go` already is not told again.
pub(super) async fn next(client: &Client, mut phase: Receiver<Phase>, is_let_go: bool) -> Signal {
    let mut retired = phase.clone();
    let let_go = async {
        let _ = retired.wait_for(|phase| *phase == Phase::Retired).await;
        sleep(LINGER).await;
    };
    let make_room = async {
        client.asked_to_leave.notified().await;
        // By then all that has arrived is known to the runtime, and so to the connection.
        yield_now().await;
    };
    tokio::select! {
        biased;
        () = abandoned(client) => Signal::Left,
        phase = phase.wait_for(|phase| *phase >= Phase::Closing) => match phase.as_deref() {
            Ok(Phase::Cut) => Signal::Cut,
            _ => Signal::Closing,
        },
        () = let_go, if !is_let_go => Signal::LetGo,
        () = make_room => Signal::MakeRoom,
    }
}

async fn abandoned(client: &Client) {
    client.socket.left().await;
    // Where none is, hyper reads on, and sees it.
    while !client.is_busy() {
        sleep(HURRY).await;
    }
}
