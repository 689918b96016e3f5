//! What one worker does: it serves its clients, and lets them end in good order.

use std::sync::Arc;

use axum::Router;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::clients::Clients;
use super::conversation::converse;
use super::crew::Inbox;
use super::signal::HURRY;
use super::socket::Socket;
use super::talk::App;
use crate::life::Phase;
use crate::peer::Peer;
use crate::shared::Shared;

/// Serves those who come until no more do, then until nothing is in flight, or told to cut off what
/// is; or, where the port has been given up, until the last connection has ended.
pub(super) async fn work(mut inbox: Inbox, router: Router, shared: &Arc<Shared>) {
    let app = App {
        router,
        shared: Some(Arc::clone(shared)),
    };
    let mut phase = shared.life.phases();
    let mut connections = JoinSet::new();
    loop {
        let newcomer = tokio::select! {
            newcomer = inbox.recv() => newcomer,
            Some(_) = connections.join_next() => continue,
        };
        let Some(newcomer) = newcomer else {
            break;
        };
        // It can't be served if this runtime does not take its socket.
        let Ok((stream, address, permit, counted)) = newcomer.settle() else {
            continue;
        };
        let peer = Arc::new(Peer::new(Some(address), Some(permit)));
        let socket = Socket::new(stream);
        let client = Clients::enter(&shared.entrance.clients, &peer, &socket.0);
        let phase = shared.life.phases();
        // Within another future it would take its room twice.
        connections.spawn(converse(
            socket,
            peer,
            app.clone(),
            phase,
            (client, counted),
        ));
    }
    let last = async {
        while connections.join_next().await.is_some() {}
        // Tunnels outlive their connections.
        shared.life.wait_until_idle().await;
    };
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase > Phase::Retired) => {}
        // The port has been given up.
        () = last => return,
    }
    let finish = async {
        shared.life.wait_until_idle().await;
        shared.life.advance(Phase::Closing);
        // Requests that are yet to be read to their end, and answers to be written.
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finish => return,
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
    }
    // Most go by themselves, some with a last word.
    let last_words = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(HURRY, last_words).await;
    connections.shutdown().await;
    shared.life.wait_until_idle().await;
}
