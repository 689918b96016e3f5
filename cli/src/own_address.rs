//! Refuses backends that are this very server: each request would come back until nothing is left.
//!
//! What goes round further away is found out by the load balancer, request by request.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use llmlb_gateway::{BackendSet, BackendUrl};

/// Refuses those of the backends that are reached at one of these addresses, which are to be listened
/// on.
pub(crate) fn refuse(backends: &BackendSet, listening: &[SocketAddr]) -> Result<(), String> {
    // What others have registered is no reason not to start.
    let registered = |origin: &Option<String>| {
        origin
            .as_deref()
            .is_some_and(|origin| origin.starts_with("service "))
    };
    let named = backends.iter().filter(|spec| !registered(&spec.origin));
    let urls = named.map(|spec| &spec.url);
    urls.into_iter().try_for_each(|url| check(url, listening))
}

/// The same for one.
pub(crate) fn check(url: &BackendUrl, listening: &[SocketAddr]) -> Result<(), String> {
    if leads_to(url, listening) {
        return Err(format!(
            "the backend {url} is this very server: name the model server's own address, or choose \
             another --port"
        ));
    }
    Ok(())
}

fn leads_to(url: &BackendUrl, listening: &[SocketAddr]) -> bool {
    let at = |address: &&SocketAddr| address.port() == url.port();
    let listening: Vec<IpAddr> = listening.iter().filter(at).map(SocketAddr::ip).collect();
    if listening.is_empty() {
        return false;
    }
    // A name that is not known now is no reason not to start.
    let Ok(addresses) = (url.host(), url.port()).to_socket_addrs() else {
        return false;
    };
    let mut addresses = addresses.map(|address| address.ip().to_canonical());
    addresses.any(|backend| {
        listening
            .iter()
            .any(|own| takes(own.to_canonical(), backend))
    })
}

/// Whether who listens on `own` takes what is sent to `backend`.
fn takes(own: IpAddr, backend: IpAddr) -> bool {
    if backend.is_unspecified() {
        // Leads to this machine, by its loopback.
        return own.is_unspecified() || own.is_loopback();
    }
    let family = own.is_ipv6() || backend.is_ipv4();
    own == backend || (own.is_unspecified() && family && is_of_this_machine(backend))
}

fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_back_here_is_found() {
        let found = |url: &str, listening: &str| {
            let backends = [url.parse::<BackendUrl>().unwrap()].into_iter().collect();
            refuse(&backends, &[listening.parse().unwrap()]).is_err()
        };
        for url in [
            "http://127.0.0.1:8000",
            "http://127.0.0.1:8000/base",
            "http://localhost:8000/v1",
            "http://0.0.0.0:8000",
            "http://[::ffff:127.0.0.1]:8000",
        ] {
            assert!(found(url, "127.0.0.1:8000"), "{url}");
            assert!(found(url, "0.0.0.0:8000"), "{url}");
        }
        assert!(found("http://127.0.0.1", "127.0.0.1:80"));
        for (url, listening) in [
            ("http://127.0.0.1:8001", "127.0.0.1:8000"),
            ("http://127.0.0.2:8000", "127.0.0.1:8000"),
            ("http://no-such-name.invalid:8000", "0.0.0.0:8000"),
        ] {
            assert!(!found(url, listening), "{url}");
        }
        // Under wine every address is one of this machine's.
        assert!(cfg!(windows) || !found("http://192.0.2.1:8000", "0.0.0.0:8000"));
    }
}
