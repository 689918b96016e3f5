//! A name in DNS that stands for a backend an address, looked up again and again by a thread of its
//! own: the system's resolver may take its time.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use llmlb_gateway::BackendUrl;

use super::follow::News;

/// Between two look-ups. What a name server allows to be kept is for the resolver to keep.
const STEP: Duration = Duration::from_secs(2);

/// Tells of each change of the addresses, until nobody listens.
pub(super) fn watch(url: BackendUrl, news: Sender<News>) -> io::Result<()> {
    let look = move || {
        let mut known = None;
        loop {
            let found = look_up(&url);
            if known.as_ref() != Some(&found) {
                known = Some(found.clone());
                if news.send(News::Addresses(url.to_string(), found)).is_err() {
                    return;
                }
            } else if news.send(News::Same).is_err() {
                return;
            }
            thread::sleep(STEP);
        }
    };
    let thread = thread::Builder::new().name("dns".to_owned());
    thread.spawn(look).map(drop)
}

/// The backends that the name stands for, or the problem.
pub(super) type Found = Result<BTreeSet<String>, String>;

fn look_up(url: &BackendUrl) -> Found {
    let addresses = (url.host(), url.port()).to_socket_addrs();
    let addresses = addresses.map_err(|e| e.to_string())?;
    Ok(addresses.map(|address| at(url, address)).collect())
}

/// The same URL with an address for its host.
fn at(url: &BackendUrl, address: SocketAddr) -> String {
    let scheme = if url.is_tls() { "https" } else { "http" };
    format!("{scheme}://{address}{}", url.base())
}
