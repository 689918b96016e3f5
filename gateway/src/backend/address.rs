//! Where a backend's name leads, and connecting to whichever of its addresses answers first
//! (RFC 8305).
//!
//! A name is resolved when its backend is looked at, not for each connection: a resolver that is
//! slow or away costs no request anything.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long one address is waited for alone, before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);

/// How long the resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Addresses {
    host: String,
    port: u16,
    /// The one that answered last is first.
    known: ArcSwap<Vec<SocketAddr>>,
}

impl Addresses {
    pub(crate) fn of(host: &str, port: u16) -> Self {
        let literal = host.parse::<IpAddr>().ok();
        let known = literal.map(|ip| SocketAddr::new(ip, port));
        Self {
            host: host.to_owned(),
            port,
            known: ArcSwap::from_pointee(known.into_iter().collect()),
        }
    }

    /// Asks where the name leads now. What was known stays as long as there is no answer.
    pub(crate) async fn resolve(&self) -> io::Result<()> {
        if self.host.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        let lookup = timeout(PATIENCE, lookup_host((self.host.as_str(), self.port)));
        let found = match lookup.await {
            Ok(Ok(found)) => in_turns(found.collect()),
            Ok(Err(e)) => return self.unresolved(&e.to_string()),
            Err(_) => return self.unresolved("the resolver does not answer"),
        };
        let known = self.known.load();
        let mut addresses = found;
        if let Some(at) = known
            .first()
            .and_then(|first| addresses.iter().position(|a| a == first))
        {
            addresses[..=at].rotate_right(1);
        }
        if **known != addresses {
            self.known.store(Arc::new(addresses));
        }
        Ok(())
    }

    fn unresolved(&self, problem: &str) -> io::Result<()> {
        if self.known.load().is_empty() {
            let problem = format!("cannot resolve {}: {problem}", self.host);
            return Err(io::Error::new(io::ErrorKind::NotFound, problem));
        }
        Ok(())
    }

    pub(crate) async fn connect(&self, patience: Duration) -> io::Result<TcpStream> {
        let known = self.known.load_full();
        let connected = match known[..] {
            [only] => timeout(patience, TcpStream::connect(only)).await,
            _ => timeout(patience, self.race(&known)).await,
        };
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Each address a little later than the one before it, or as soon as that has failed.
    async fn race(&self, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
        let mut waiting = addresses.iter().copied().enumerate();
        let mut trying = JoinSet::new();
        let mut problem = None;
        loop {
            let more = match waiting.next() {
                Some((at, address)) => {
                    trying.spawn(async move { (at, TcpStream::connect(address).await) });
                    waiting.len() > 0
                }
                None => false,
            };
            let done = tokio::select! {
                done = trying.join_next() => done,
                () = sleep(HEAD_START), if more => continue,
            };
            match done {
                Some(Ok((at, Ok(stream)))) => {
                    self.prefer(addresses, at);
                    return Ok(stream);
                }
                Some(Ok((at, Err(e)))) => {
                    let told = format!("{}: {e}", addresses[at]);
                    problem = Some(io::Error::new(e.kind(), told));
                }
                Some(Err(e)) => problem = Some(io::Error::other(e)),
                None => {
                    let nowhere = || {
                        let problem = format!("{} leads nowhere", self.host);
                        io::Error::new(io::ErrorKind::NotFound, problem)
                    };
                    return Err(problem.unwrap_or_else(nowhere));
                }
            }
        }
    }

    /// Next time, this one has the head start.
    fn prefer(&self, addresses: &[SocketAddr], at: usize) {
        if at > 0 {
            let mut addresses = addresses.to_vec();
            addresses[..=at].rotate_right(1);
            self.known.store(Arc::new(addresses));
        }
    }
}

/// Families by turns, beginning with that of the first: a whole family may be out of reach.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv4) else {
        return addresses;
    };
    let mut seen = std::collections::HashSet::new();
    let once = addresses
        .into_iter()
        .filter(|address| seen.insert(*address));
    let (mut one, mut other): (Vec<_>, Vec<_>) = once.partition(|a| a.is_ipv4() == first);
    let mut ordered = Vec::with_capacity(one.len() + other.len());
    let (mut one, mut other) = (one.drain(..), other.drain(..));
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn leading_to(addresses: &[SocketAddr]) -> Addresses {
        let name = Addresses::of("a-name", 1);
        name.known.store(Arc::new(addresses.to_vec()));
        name
    }

    /// An address that takes no more connections and does not refuse them either.
    #[cfg(target_os = "linux")]
    fn mute() -> (SocketAddr, Vec<Box<dyn std::any::Any>>) {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut kept: Vec<Box<dyn std::any::Any>> = vec![Box::new(listener)];
        for _ in 0..4 {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address);
            kept.push(Box::new(filler));
        }
        (address.as_socket().unwrap(), kept)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn one_dead_address_of_several_costs_a_moment_and_only_once() {
        let (dead, _kept) = mute();
        let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = alive.local_addr().unwrap();
        let name = leading_to(&[dead, address]);
        let stream = name.connect(LONG).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert_eq!(name.known.load()[..], [address, dead]);
        // Only the dead one is left: patience ends.
        let name = leading_to(&[dead, dead]);
        let error = name.connect(Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_refusal_brings_on_the_next_at_once_and_the_last_one_is_told() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = gone.local_addr().unwrap();
        drop(gone);
        let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = alive.local_addr().unwrap();
        let many = [vec![refusing; 100], vec![address]].concat();
        // A head start for each would take longer.
        let stream = leading_to(&many).connect(HEAD_START * 50).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        let error = leading_to(&[refusing; 3]).connect(LONG).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&refusing.to_string()), "{error}");
        assert!(leading_to(&[]).connect(LONG).await.is_err());
    }

    #[tokio::test]
    async fn names_are_resolved_when_asked_and_the_best_stays_first() {
        let name = Addresses::of("localhost", 9);
        assert!(name.known.load().is_empty());
        name.resolve().await.unwrap();
        assert!(
            name.known
                .load()
                .contains(&SocketAddr::from(([127, 0, 0, 1], 9)))
        );
        let unknown = Addresses::of("no-such-name.invalid", 9);
        let error = unknown.resolve().await.unwrap_err();
        assert!(
            error.to_string().contains("no-such-name.invalid"),
            "{error}"
        );
        let known = vec![SocketAddr::from(([127, 0, 0, 1], 9))];
        unknown.known.store(Arc::new(known.clone()));
        unknown.resolve().await.unwrap();
        assert_eq!(**unknown.known.load(), known, "the resolver is away");
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &[&str]| -> Vec<SocketAddr> {
            text.iter().map(|text| text.parse().unwrap()).collect()
        };
        let given = parse(&[
            "[::1]:1",
            "[::2]:1",
            "[::2]:1",
            "1.1.1.1:1",
            "2.2.2.2:1",
            "3.3.3.3:1",
        ]);
        let expected = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"]);
        assert_eq!(in_turns(given), expected);
    }
}
