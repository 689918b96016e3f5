//! A connection that has switched protocols: a WebSocket.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::flight::Flight;
use crate::backend::Connection;
use crate::life::Phase;

/// Carries bytes both ways until one end has had enough, or all is cut.
pub(super) async fn tunnel(
    mut flight: Flight,
    client: OnUpgrade,
    backend: OnUpgrade,
    connection: Connection,
) {
    let mut phase = flight.shared.life.phases();
    let copy = async {
        let (client, backend) = tokio::try_join!(client, backend).ok()?;
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::io::copy_bidirectional(&mut client, &mut backend)
            .await
            .ok()
    };
    tokio::select! {
        done = copy => flight.end = if done.is_some() { "" } else { "broken" },
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => flight.end = "cut",
    }
    drop(connection);
}
