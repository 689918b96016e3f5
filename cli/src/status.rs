//! `llmlb status`: the servers that core lists, and whether they answer, as a table or JSON.

mod row;
mod table;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use llmlb_lock_core::{LockDir, Server, ServerState};

use crate::args::{Format, StatusArgs};
use crate::details::Details;
use crate::exit::{self, Failure};
use crate::insight::Insight;
use crate::listening::{Listening, holder_listens};
use crate::state::{self, State};
use crate::{output, owner, pool};
use row::{Row, Status};
use table::{Look, table};

/// A listening port on this machine accepts within microseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// How many read at once what the system tells: that takes no waiting.
const LOOKS: usize = 4;
/// How many look at once whether a port accepts connections.
const PROBES: usize = 128;
/// How many lock files are shown. Whoever has more has not made them by starting servers.
const SHOWN: usize = 2000;
/// How often a server that is waited for is looked for.
const FIRST_STEP: Duration = Duration::from_millis(10);
const LONGEST_STEP: Duration = Duration::from_millis(250);
const WATCH_STEP: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &StatusArgs) -> Result<u8, Failure> {
    if args.wait.is_some() && args.port.is_none() {
        return Err(Failure::new(exit::USAGE, "--wait is for one PORT"));
    }
    let locks = LockDir::default();
    if !locks.path().exists() {
        let directory = locks.path().display();
        output::note(&format!(
            "There is no directory {directory}, and so no lock in it"
        ));
    }
    let started = Instant::now();
    let mut step = FIRST_STEP;
    loop {
        let look = Look::of(args.format);
        let rows = match rows(&locks, args, look) {
            Ok(rows) => rows,
            Err(failure) if args.port.is_some() => {
                return Err(Failure {
                    code: exit::UNKNOWN,
                    ..failure
                });
            }
            Err(failure) => return Err(failure),
        };
        if let Some(patience) = args.wait
            && exit_code(rows.rows.first()) != exit::OK
        {
            let left = patience.saturating_sub(started.elapsed());
            if !left.is_zero() {
                thread::sleep(step.min(left));
                step = (step * 2).min(LONGEST_STEP);
                continue;
            }
            output::note(&format!("Waited {patience:?} in vain"));
        }
        let remark = rows.remark();
        let rows = rows.rows;
        let text = match args.format {
            Format::Table | Format::Wide => {
                let mut text = table(&rows, args.port, look);
                if look.tells_all() && !rows.is_empty() {
                    text += &format!("Locks are in {}\n", locks.path().display());
                }
                text + &remark.map_or_else(String::new, |remark| remark + "\n")
            }
            Format::Json => {
                remark.iter().for_each(|remark| output::note(remark));
                json(&rows)?
            }
        };
        if !args.watch {
            output::write(text.as_bytes())?;
            return Ok(match args.port {
                Some(_) => exit_code(rows.first()),
                None => exit::OK,
            });
        }
        // A terminal is redrawn; a pipe gets one picture after the other.
        let clear = if io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        output::write_or_exit(format!("{clear}{text}").as_bytes())?;
        thread::sleep(WATCH_STEP);
    }
}

fn rows(locks: &LockDir, args: &StatusArgs, look: Look) -> Result<Rows, Failure> {
    let servers: Vec<Server> = match args.port {
        Some(port) => locks.server(port)?.into_iter().collect(),
        None => locks.servers()?,
    };
    let shown = |server: &Server| {
        let live = matches!(server.state, ServerState::Running | ServerState::Held);
        live || args.all || args.port.is_some()
    };
    let (servers, hidden): (Vec<Server>, Vec<Server>) = servers.into_iter().partition(shown);
    if args.port.is_none() && !args.watch {
        hidden_of_others(&hidden)
            .iter()
            .for_each(|line| output::note(line));
    }
    let (servers, left_out) = within_bounds(servers);
    // Looked up by the first probe, if there is one.
    let addresses = &LazyLock::new(local_addresses);
    let insight = &Insight::default();
    let seen = pool::map(&servers, LOOKS, |server| {
        (server.port, seen(server, insight), told(server))
    });
    let unknown: Vec<u16> = seen
        .iter()
        .filter(|(_, seen, told)| ready(*seen, told.as_ref()).is_none())
        .map(|(port, ..)| *port)
        .collect();
    let connected = pool::map(&unknown, PROBES, |&port| connects(port, addresses));
    let mut connected = connected.into_iter();
    let ready: Vec<bool> = seen
        .iter()
        .map(|(_, seen, told)| {
            let known = ready(*seen, told.as_ref());
            known.or_else(|| connected.next()).unwrap_or(false)
        })
        .collect();
    let details = if args.format == Format::Json || look.tells_all() {
        let seen: Vec<_> = servers.iter().zip(&seen).collect();
        pool::map(&seen, LOOKS, |(server, (_, seen, told))| {
            details(server, *seen, insight, told.as_ref())
        })
    } else {
        servers.iter().map(|_| Details::default()).collect()
    };
    let rows = servers.into_iter().zip(ready).zip(details);
    let mut rows: Vec<Row> = rows
        .map(|((server, ready), details)| Row::new(server, ready, details))
        .collect();
    if args.all && args.port.is_none() {
        rows.extend(locks.left_overs()?.into_iter().map(Row::left_over));
        rows.sort_by_key(|row| row.port);
    }
    Ok(Rows { rows, left_out })
}

/// A line for the rest: whose it is, as far as that can be told.
fn hidden_of_others(hidden: &[Server]) -> Option<String> {
    let unreadable = hidden.iter().filter_map(|server| match &server.state {
        ServerState::Unreadable { owner } => Some(owner.as_deref().unwrap_or("unknown")),
        _ => None,
    });
    let mut owners: Vec<&str> = unreadable.collect();
    let lock_files = match owners.len() {
        0 => return None,
        1 => "1 lock file that can't be read is".to_owned(),
        count => format!("{count} lock files that can't be read are"),
    };
    owners.sort_unstable();
    owners.dedup();
    Some(format!(
        "{lock_files} not shown (owned by {}): see --all",
        owners.join(", ")
    ))
}

/// What is shown of them, and how many are not: this user's own come first, and then as many of each
/// other's, any of whom may have made any number.
fn within_bounds(servers: Vec<Server>) -> (Vec<Server>, usize) {
    let left_out = servers.len().saturating_sub(SHOWN);
    if left_out == 0 {
        return (servers, 0);
    }
    let own = owner::own();
    let mut counts: HashMap<Option<u32>, usize> = HashMap::new();
    let ranked = servers.into_iter().map(|server| {
        let owner = owner::of(&server.path);
        let count = counts.entry(owner).or_default();
        *count += 1;
        ((owner != own, *count), server)
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let shown = ranked.into_iter().take(SHOWN).map(|(_, server)| server);
    let mut shown: Vec<Server> = shown.collect();
    shown.sort_unstable_by_key(|server| server.port);
    (shown, left_out)
}

struct Rows {
    rows: Vec<Row>,
    left_out: usize,
}

impl Rows {
    fn remark(&self) -> Option<String> {
        let Self { left_out, .. } = self;
        (*left_out > 0).then(|| {
            format!("{left_out} more lock files are not shown; see --port for one of them")
        })
    }
}

fn json(rows: &[Row]) -> Result<String, Failure> {
    let text = serde_json::to_string(rows).map_err(|e| Failure::new(exit::FAILURE, e))?;
    Ok(text + "\n")
}

fn exit_code(row: Option<&Row>) -> u8 {
    match row.map(|row| &row.status) {
        Some(Status::Running) => exit::OK,
        Some(Status::Starting) => exit::STARTING,
        None | Some(Status::Stale | Status::LeftOver) => exit::NOT_RUNNING,
        Some(Status::Held | Status::Unreadable) => exit::UNKNOWN,
    }
}

/// Where a server on this machine may listen; the loopback first, as most do.
fn local_addresses() -> Vec<IpAddr> {
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    for ip in interface_addresses() {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

#[cfg(unix)]
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        // A link-local address is of no use without its interface.
        let v6 = address
            .as_sockaddr_in6()
            .map(|a| a.ip())
            .filter(|ip| !ip.is_unicast_link_local())
            .map(IpAddr::V6);
        v4.or(v6)
    };
    addresses.filter_map(ip).collect()
}

/// Windows takes two seconds to tell that nobody listens on a port: the loopback must do.
#[cfg(windows)]
fn interface_addresses() -> Vec<IpAddr> {
    Vec::new()
}

/// What the system tells of the server's own processes.
fn seen(server: &Server, insight: &Insight) -> Listening {
    match &server.info {
        Some(info) if server.state == ServerState::Running => {
            holder_listens(info.pid, &server.path, server.port, insight)
        }
        _ => Listening::Not,
    }
}

/// Whether it serves, as far as that is told without connecting.
fn ready(seen: Listening, told: Option<&State>) -> Option<bool> {
    let told = told.and_then(|state| Some((state.ready?, state.asked_elsewhere)));
    match (told, seen) {
        // Whoever was told where to ask knows better than who looks at sockets.
        (Some((false, _)), _) => Some(false),
        (Some((true, true)), _) => Some(true),
        // What has answered on the port once speaks for no port that is closed by now.
        (_, Listening::On(_)) => Some(true),
        (_, Listening::Not) => Some(false),
        (_, Listening::Unknown) => None,
    }
}

/// What its guard tells.
fn told(server: &Server) -> Option<State> {
    let info = server.info.as_ref()?;
    let runs = server.state == ServerState::Running;
    runs.then(|| state::read(&server.path, info)).flatten()
}

fn details(server: &Server, seen: Listening, insight: &Insight, told: Option<&State>) -> Details {
    let address = match seen {
        Listening::On(address) => Some(address),
        Listening::Not | Listening::Unknown => None,
    };
    match &server.info {
        Some(info) if server.state == ServerState::Running => {
            Details::of(info, &server.path, address, insight, told)
        }
        _ => Details::default(),
    }
}

/// Whether anybody listens, where the system does not tell whose a port is.
fn connects(port: u16, addresses: &[IpAddr]) -> bool {
    addresses.iter().any(|&ip| {
        match TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT) {
            Ok(_) => true,
            // Nobody there is refused at once: this one listens, and is too busy to answer. Windows
            // asks for two seconds before it believes that nobody is there.
            Err(e) => cfg!(unix) && e.kind() == io::ErrorKind::TimedOut && ip.is_loopback(),
        }
    })
}
