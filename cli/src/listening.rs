//! Where the processes of a server listen on its port, as the kernel tells. Apart from connecting,
//! which a stranger on the same port answers as well, and which reaches nobody on an address that
//! is not tried.

use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::insight::Insight;
#[cfg(target_os = "linux")]
use crate::insight::Looked;

/// Who listens on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) enum Listening {
    /// The server does, or somebody of whom it can't be told that he is not of the server's.
    #[cfg_attr(windows, allow(dead_code, reason = "it is not told there"))]
    On(SocketAddr),
    /// Nobody, or strangers alone.
    Not,
    /// The system does not tell.
    Unknown,
}

/// Whether `server` listens on `port`, or any process below `root`: the server's launcher where it
/// is known, as what has lost its parent comes to that.
#[cfg(not(target_os = "linux"))]
pub(crate) fn listening(_server: u32, _root: u32, _port: u16, _: &Insight) -> Listening {
    Listening::Unknown
}

/// Whether `server` listens on `port`, or any process below `root`: the server's launcher where it
/// is known, as what has lost its parent comes to that.
#[cfg(target_os = "linux")]
pub(crate) fn listening(server: u32, root: u32, port: u16, insight: &Insight) -> Listening {
    let Some(sockets) = linux::sockets(server, port) else {
        return Listening::Unknown;
    };
    if sockets.is_empty() {
        return Listening::Not;
    }
    match linux::owned(&sockets, server, root, insight) {
        linux::Owned::Yes(address, _) => Listening::On(address),
        linux::Owned::No => Listening::Not,
        linux::Owned::Untold => Listening::On(sockets[0].address),
    }
}

/// Whether `server`, or the one below `root` that listens, has been stopped by a signal: the kernel
/// takes connections for it still.
#[cfg(target_os = "linux")]
pub(crate) fn is_stopped(server: u32, root: u32, port: u16, insight: &Insight) -> bool {
    let sockets = linux::sockets(server, port).unwrap_or_default();
    let listens = match linux::owned(&sockets, server, root, insight) {
        linux::Owned::Yes(_, pid) => pid,
        linux::Owned::No | linux::Owned::Untold => server,
    };
    linux::is_stopped(server) || listens != server && linux::is_stopped(listens)
}

/// The same for whoever holds a lock, and the launcher that has it as well.
pub(crate) fn holder_listens(holder: u32, lock: &Path, port: u16, insight: &Insight) -> Listening {
    match listening(holder, holder, port, insight) {
        #[cfg(target_os = "linux")]
        Listening::Not => match linux::launcher(holder, lock, insight) {
            Some(launcher) => listening(holder, launcher, port, insight),
            None => Listening::Not,
        },
        #[cfg(not(target_os = "linux"))]
        Listening::Not => {
            let _ = lock;
            Listening::Not
        }
        found => found,
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{launcher, parent};

#[cfg(target_os = "linux")]
mod linux {
    use super::{Insight, IpAddr, Ipv4Addr, Ipv6Addr, Looked, Path, SocketAddr};
    use std::collections::HashSet;
    use std::fs::{self, File};
    use std::io::{self, BufRead, BufReader, ErrorKind};

    /// No server has more; whoever does would hold up all who look.
    const MOST_PROCESSES: usize = 4096;

    pub(super) struct Socket {
        pub(super) address: SocketAddr,
        inode: u64,
    }

    /// Those that listen on the port where `pid` is. `None` if that isn't told.
    pub(super) fn sockets(pid: u32, port: u16) -> Option<Vec<Socket>> {
        // Asked for, it is a matter of microseconds; the text is made from all connections.
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
        let elsewhere = match (network(&pid.to_string()), network("self")) {
            (Ok(its), Ok(own)) => its != own,
            _ => false,
        };
        let asked = match elsewhere {
            true => None,
            false => diag::sockets(port).ok(),
        };
        asked.or_else(|| shown(pid, port))
    }

    fn shown(pid: u32, port: u16) -> Option<Vec<Socket>> {
        let mut sockets = read(&format!("/proc/{pid}/net/tcp"), port).ok()?;
        match read(&format!("/proc/{pid}/net/tcp6"), port) {
            Ok(more) => sockets.extend(more),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(_) => return None,
        }
        Some(sockets)
    }

    fn read(path: &str, port: u16) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for line in BufReader::new(File::open(path)?).lines().skip(1) {
            // Those that listen come first; the others may be a hundred thousand.
            match parse(&line?) {
                Line::Listens(socket) if socket.address.port() == port => found.push(socket),
                Line::Listens(_) | Line::Unknown => {}
                Line::Other => break,
            }
        }
        Ok(found)
    }

    /// The kernel's own interface for it, sock_diag(7).
    mod diag {
        use std::io;
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

        use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
        use rustix::net::{
            AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
        };

        use super::Socket;

        const INET: u8 = 2;
        const INET6: u8 = 10;
        const TCP: u8 = 6;
        /// A bit for each state.
        const LISTENS: u32 = 1 << 10;
        const BY_FAMILY: u16 = 20;
        const REQUEST_DUMP: u16 = 0x301;
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        /// `struct nlmsghdr`
        const HEADER: usize = 16;
        /// Beside the header, `struct inet_diag_req_v2`.
        const REQUEST: usize = HEADER + 56;
        /// In `struct inet_diag_msg`.
        const PORT: usize = 4;
        const ADDRESS: usize = 8;
        const INODE: usize = 68;
        const MESSAGE: usize = 72;

        pub(super) fn sockets(port: u16) -> io::Result<Vec<Socket>> {
            let socket = socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                Some(SOCK_DIAG),
            )?;
            let mut found = Vec::new();
            for family in [INET, INET6] {
                let mut request = [0; REQUEST];
                request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
                request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
                request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
                request[HEADER] = family;
                request[HEADER + 1] = TCP;
                request[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENS.to_ne_bytes());
                request[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
                let kernel = SocketAddrNetlink::new(0, 0);
                sendto(&socket, &request, SendFlags::empty(), &kernel)?;
                let mut buffer = vec![0; 32 * 1024];
                loop {
                    let (len, _) = recv(&socket, &mut *buffer, RecvFlags::empty())?;
                    if read_messages(&buffer[..len], port, &mut found)? {
                        break;
                    }
                }
            }
            Ok(found)
        }

        /// Whether these were the last.
        fn read_messages(mut rest: &[u8], port: u16, found: &mut Vec<Socket>) -> io::Result<bool> {
            let short = || io::Error::from(io::ErrorKind::InvalidData);
            while !rest.is_empty() {
                let header = rest.first_chunk::<HEADER>().ok_or_else(short)?;
                let [a, b, c, d, e, f, ..] = *header;
                let len = u32::from_ne_bytes([a, b, c, d]) as usize;
                let message = rest.get(HEADER..len).ok_or_else(short)?;
                match u16::from_ne_bytes([e, f]) {
                    DONE => return Ok(true),
                    ERROR => return Err(short()),
                    _ => {
                        let socket = parse(message).ok_or_else(short)?;
                        if socket.address.port() == port {
                            found.push(socket);
                        }
                    }
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
            Ok(false)
        }

        fn parse(message: &[u8]) -> Option<Socket> {
            let message = message.first_chunk::<MESSAGE>()?;
            let ip = match message[0] {
                INET6 => IpAddr::V6(Ipv6Addr::from(*message[ADDRESS..].first_chunk::<16>()?)),
                _ => IpAddr::V4(Ipv4Addr::from(*message[ADDRESS..].first_chunk::<4>()?)),
            };
            let port = u16::from_be_bytes(*message[PORT..].first_chunk()?);
            let inode = u32::from_ne_bytes(*message[INODE..].first_chunk()?);
            Some(Socket {
                address: SocketAddr::new(ip, port),
                inode: u64::from(inode),
            })
        }
    }

    enum Line {
        Listens(Socket),
        Other,
        Unknown,
    }

    fn parse(line: &str) -> Line {
        const LISTENS: &str = "0A";
        let mut fields = line.split_ascii_whitespace();
        let (address, state) = (fields.nth(1), fields.nth(1));
        if state.is_some_and(|state| state != LISTENS) {
            return Line::Other;
        }
        let inode = fields.nth(5).and_then(|inode| inode.parse().ok());
        match (address.and_then(address_of), inode) {
            (Some(address), Some(inode)) => Line::Listens(Socket { address, inode }),
            _ => Line::Unknown,
        }
    }

    /// Words of 32 bits as they lie in memory, each written as a number.
    fn address_of(text: &str) -> Option<SocketAddr> {
        let (address, port) = text.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let word = |at: usize| {
            let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        let ip = if address.len() == 8 {
            IpAddr::V4(Ipv4Addr::from(word(0)?))
        } else {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            bytes.copy_from_slice(words.as_flattened());
            IpAddr::V6(Ipv6Addr::from(bytes))
        };
        Some(SocketAddr::new(ip, port))
    }

    pub(super) enum Owned {
        /// In this one.
        Yes(SocketAddr, u32),
        No,
        /// A process may not be looked into.
        Untold,
    }

    /// Whether one of these is open in one of the processes.
    pub(super) fn owned(sockets: &[Socket], server: u32, root: u32, insight: &Insight) -> Owned {
        let mut seen = HashSet::from([server, root]);
        // The most likely one first.
        let mut waiting = std::collections::VecDeque::from([server]);
        if root != server {
            waiting.push_back(root);
        }
        let mut told = true;
        while let Some(pid) = waiting.pop_front() {
            let process = insight.of(pid);
            match process.first_open(sockets, |socket| socket.inode) {
                Looked::At(Some(socket)) => return Owned::Yes(socket.address, pid),
                Looked::At(None) | Looked::Gone => {}
                Looked::Hidden => told = false,
            }
            match process.children() {
                Looked::At(children) => {
                    waiting.extend(children.iter().filter(|c| seen.insert(**c)))
                }
                Looked::Gone => {}
                Looked::Hidden => told = false,
            }
            if seen.len() > MOST_PROCESSES {
                return Owned::Untold;
            }
        }
        if told { Owned::No } else { Owned::Untold }
    }

    /// By a signal or a debugger.
    pub(super) fn is_stopped(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        let state = stat.as_deref().ok().and_then(|stat| {
            // The name before it may be anything.
            stat.rsplit_once(')')?.1.trim_start().chars().next()
        });
        matches!(state, Some('T' | 't'))
    }

    /// Who has started a process, or has it by now.
    pub(crate) fn parent(pid: u32) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        parent.trim().parse().ok().filter(|&parent| parent > 0)
    }

    /// The parent of a holder, if it has the lock's file open.
    pub(crate) fn launcher(holder: u32, lock: &Path, insight: &Insight) -> Option<u32> {
        let parent = parent(holder)?;
        let lock = lock.canonicalize().ok()?;
        insight.of(parent).has_lock(&lock).then_some(parent)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::os::fd::AsRawFd;

        #[test]
        fn what_is_asked_for_is_what_is_shown() {
            for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
                // There may be no IPv6.
                let Ok(listener) = std::net::TcpListener::bind(address) else {
                    continue;
                };
                let bound = listener.local_addr().unwrap();
                let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
                let name = fs::read_link(link).unwrap().into_os_string();
                // Others may listen on the same port of another address.
                let is_seen = |sockets: Vec<Socket>| {
                    let mut sockets = sockets.into_iter();
                    sockets.any(|s| s.address == bound && *name == *format!("socket:[{}]", s.inode))
                };
                assert!(is_seen(shown(std::process::id(), bound.port()).unwrap()));
                assert!(is_seen(diag::sockets(bound.port()).unwrap()));
            }
        }

        #[test]
        fn addresses_are_read_as_the_kernel_writes_them() {
            let read = |text: &str| address_of(text).map(|address| address.to_string());
            assert_eq!(read("0100007F:1F90").as_deref(), Some("127.0.0.1:8080"));
            let loopback = "00000000000000000000000001000000:0050";
            assert_eq!(read(loopback).as_deref(), Some("[::1]:80"));
            assert_eq!(read("0100:1F90"), None);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn own_listeners_are_told_from_those_of_others() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let own = std::process::id();
            assert_eq!(
                listening(own, own, address.port(), &Insight::default()),
                Listening::On(address)
            );
            let mut child = std::process::Command::new("sleep");
            let mut child = child.arg("60").spawn().unwrap();
            let other = child.id();
            assert_eq!(
                listening(other, other, address.port(), &Insight::default()),
                Listening::Not
            );
            // One below it is found from above.
            assert_eq!(
                listening(other, own, address.port(), &Insight::default()),
                Listening::On(address)
            );
            drop(listener);
            assert_eq!(
                listening(own, own, address.port(), &Insight::default()),
                Listening::Not
            );
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
