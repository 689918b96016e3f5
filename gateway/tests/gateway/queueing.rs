//! Requests wait for backends that have as many as they may.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use llmlb_gateway::{Affinity, BackendSet, BackendSpec};

use crate::support::{
    Backend, Gate, Gateway, Next, Port, Wire, answer, chat, often, once, request, wait_until,
};

/// Answers with what it is asked for, each request when the gate lets it through.
fn gated(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(&["m"], move |request, wire| {
        gate.pass();
        let path = request.first_line.split(' ').nth(1).unwrap();
        wire.send(answer("200 OK", "", path));
        Next::Read
    })
}

fn one_at_a_time(backends: &[&Backend]) -> BackendSet {
    let spec = |backend: &&Backend| {
        BackendSpec::new(backend.url().parse().unwrap())
            .max(NonZeroUsize::new(1))
            .origin("limited")
    };
    backends.iter().map(spec).collect()
}

/// Before these, each of which takes one request at a time.
fn limited(backends: &[&Backend], options: llmlb_gateway::Options) -> Gateway {
    let urls: Vec<_> = backends.iter().map(|backend| backend.url()).collect();
    let gateway = Gateway::with(&urls, options);
    gateway.send(one_at_a_time(backends));
    wait_until("their limits", || {
        let health = gateway.health();
        let mut seen = health["backends"].as_array().unwrap().iter();
        seen.all(|one| one["origin"] == "limited").then_some(())
    });
    gateway
}

fn ask(gateway: &Gateway, path: &str) -> Wire {
    let mut client = gateway.connect();
    client.send(request("POST", path, "", &chat("m")));
    client
}

fn wait_for_queue(gateway: &Gateway, count: f64) {
    wait_until(&format!("{count} to wait"), || {
        (gateway.metrics()["llmlb_queue_depth"] == count).then_some(())
    });
}

/// A gateway whose only backend is busy with one request, while others wait, each come after the
/// one before it.
fn busy(
    backend: &Backend,
    options: llmlb_gateway::Options,
    waiting: usize,
) -> (Gateway, Vec<Wire>) {
    let gateway = limited(&[backend], options);
    let mut clients = vec![ask(&gateway, "/v1/0")];
    gateway.wait_for_in_flight(0, 1);
    // In flight it is already when it is about to be connected to.
    wait_until("it to be asked", || {
        (!backend.requests().is_empty()).then_some(())
    });
    for number in 1..=waiting {
        clients.push(ask(&gateway, &format!("/v1/{number}")));
        wait_for_queue(&gateway, number as f64);
    }
    (gateway, clients)
}

#[test]
fn who_comes_first_is_served_first() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, clients) = busy(&backend, once(), 4);
    for (number, mut client) in clients.into_iter().enumerate() {
        // Never more than it may have.
        assert_eq!(gateway.health()["backends"][0]["in_flight"], 1);
        gate.open();
        let answer = client.head().unwrap();
        assert_eq!(answer.status(), 200, "{number}");
    }
    let paths: Vec<_> = backend
        .requests()
        .iter()
        .map(|request| request.first_line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(paths, ["/v1/0", "/v1/1", "/v1/2", "/v1/3", "/v1/4"]);
    let metrics = gateway.metrics();
    assert_eq!(metrics["llmlb_queue_depth"], 0.0);
    assert_eq!(metrics["llmlb_queue_wait_seconds_count"], 4.0);
}

#[test]
fn who_leaves_leaves_the_queue() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 2);
    drop(clients.remove(1));
    wait_for_queue(&gateway, 1.0);
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
    assert_eq!(backend.requests().len(), 2);
}

/// The paths that a backend has been asked for.
fn paths(backend: &Backend) -> Vec<String> {
    let requests = backend.requests();
    let path = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
    requests.iter().map(|one| path(&one.first_line)).collect()
}

#[test]
fn who_goes_on_elsewhere_lets_others_go_before_it_a_few_times() {
    let gates = [Gate::default(), Gate::default()];
    let backends = [gated(&gates[0]), gated(&gates[1])];
    let options = once().affinity(Affinity::Session);
    let gateway = limited(&[&backends[0], &backends[1]], options);
    let ask = |session: &str, number: usize| {
        let mut client = gateway.connect();
        let header = format!("X-Session-ID: {session}\r\n");
        let path = format!("/v1/{session}/{number}");
        client.send(request("POST", &path, &header, &chat("m")));
        client
    };
    // Where one is busy, a new session is at home at the other.
    let _first = ask("first", 0);
    let busy = wait_until("it to be busy", || {
        (0..2).find(|at| gateway.health()["backends"][at]["in_flight"] == 1)
    });
    let idle = 1 - busy;
    gates[idle].open();
    assert_eq!(ask("there", 0).head().unwrap().status(), 200);
    gateway.wait_for_in_flight(idle, 0);
    let _there = ask("there", 1);
    gateway.wait_for_in_flight(idle, 1);
    let mut here = vec![];
    let mut waits = ask("there", 2);
    wait_for_queue(&gateway, 1.0);
    for number in 1..=5 {
        here.push(ask("first", number));
        wait_for_queue(&gateway, 2.0);
        gates[busy].open();
        wait_for_queue(&gateway, 1.0);
    }
    // It was passed over as often as may be, and then it had waited long enough.
    gates[busy].open();
    assert_eq!(waits.head().unwrap().status(), 200);
    let mut served: Vec<_> = (0..5).map(|number| format!("/v1/first/{number}")).collect();
    served.push("/v1/there/2".to_owned());
    assert_eq!(paths(&backends[busy])[..6], served);
}

#[test]
fn a_queue_that_is_full_is_told_with_when_to_come_again() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once().queue(2), 2);
    let refused = gateway.chat("m");
    assert_eq!(
        (refused.status(), &*refused.error_code()),
        (429, "queue_full")
    );
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1, "{refused:?}");
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

#[test]
fn a_wait_in_vain_is_503() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let options = once().queue_timeout(Duration::from_millis(50));
    let gateway = limited(&[&backend], options);
    let mut first = ask(&gateway, "/v1/0");
    gateway.wait_for_in_flight(0, 1);
    let refused = gateway.chat("m");
    let told = (refused.status(), refused.error_code());
    assert_eq!(told, (503, "queue_timeout".to_owned()));
    assert!(refused.header("retry-after").is_some());
    gate.open();
    assert_eq!(first.head().unwrap().status(), 200);
}

#[test]
fn where_there_is_no_queue_the_answer_is_503_at_once() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once().queue(0), 0);
    let refused = gateway.chat("m");
    assert_eq!(
        (refused.status(), &*refused.error_code()),
        (503, "overloaded")
    );
    gate.open();
    assert_eq!(clients[0].head().unwrap().status(), 200);
}

#[test]
fn a_backend_that_comes_takes_who_waits() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 1);
    let other = Backend::named("other", &["m"]);
    gateway.send(one_at_a_time(&[&backend, &other]));
    assert_eq!(clients[1].head().unwrap().status(), 200);
    assert_eq!(other.requests().len(), 1);
    gate.open();
    assert_eq!(clients[0].head().unwrap().status(), 200);
}

#[test]
fn who_waits_for_another_model_is_not_held_up() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 2);
    let other = Backend::named("other", &["n"]);
    gateway.send(one_at_a_time(&[&backend, &other]));
    gateway.wait_for_states(&["up", "up"]);
    for _ in 0..3 {
        assert_eq!(gateway.chat("n").body, b"other");
    }
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

#[test]
fn a_full_queue_keeps_nobody_from_a_free_server() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let other = Backend::named("other", &["n"]);
    let gateway = limited(&[&backend, &other], once().queue(1));
    let mut clients = vec![ask(&gateway, "/v1/0")];
    gateway.wait_for_in_flight(0, 1);
    clients.push(ask(&gateway, "/v1/1"));
    wait_for_queue(&gateway, 1.0);
    for _ in 0..3 {
        assert_eq!(gateway.chat("n").body, b"other");
    }
    assert_eq!(gateway.chat("m").error_code(), "queue_full");
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

/// Who may go to either server, and who may go to one alone, are each served in the order in which
/// they came.
#[test]
fn who_shares_a_server_with_those_before_stays_behind_them() {
    let gates = [Gate::default(), Gate::default()];
    let server = |models: &[&str], gate: &Gate| {
        let gate = gate.clone();
        Backend::start(models, move |request, wire| {
            gate.pass();
            let path = request.first_line.split(' ').nth(1).unwrap();
            wire.send(answer("200 OK", "", path));
            Next::Read
        })
    };
    let shared = server(&["m", "n"], &gates[0]);
    let own = server(&["n"], &gates[1]);
    let gateway = limited(&[&shared, &own], once());
    let mut waiting = 0;
    let mut asks = |model: &str, path: &str| {
        let mut client = gateway.connect();
        client.send(request("POST", path, "", &chat(model)));
        wait_until("it to wait, or to be served", || {
            let (health, metrics) = (gateway.health(), gateway.metrics());
            let flying = |at: usize| health["backends"][at]["in_flight"].as_f64().unwrap();
            let here = flying(0) + flying(1) + metrics["llmlb_queue_depth"];
            (here == f64::from(waiting + 1)).then_some(())
        });
        waiting += 1;
        client
    };
    let mut first = asks("m", "/v1/m0");
    let mut second = asks("n", "/v1/n0");
    let mut rest: Vec<_> = [("m", "m1"), ("n", "n1"), ("m", "m2"), ("n", "n2")]
        .map(|(model, name)| asks(model, &format!("/v1/{name}")))
        .into();
    // The shared one comes free for all of them but the last, which is for the other.
    for _ in 0..4 {
        gates[0].open();
    }
    for client in std::iter::once(&mut first).chain(&mut rest[..3]) {
        assert_eq!(client.head().unwrap().status(), 200);
    }
    gates[1].open();
    assert_eq!(second.head().unwrap().status(), 200);
    gates.iter().for_each(Gate::open);
    assert_eq!(rest[3].head().unwrap().status(), 200);
    let paths = |backend: &Backend| {
        let requests = backend.requests();
        let path = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
        requests
            .iter()
            .map(|request| path(&request.first_line))
            .collect::<Vec<_>>()
    };
    let seen = paths(&shared);
    assert_eq!(seen[..4], ["/v1/m0", "/v1/m1", "/v1/n1", "/v1/m2"]);
}

/// A request that one of the servers has refused waits for the other: not so those behind it.
#[test]
fn who_has_tried_a_server_holds_up_nobody_who_has_not() {
    let gate = Gate::default();
    let busy = gated(&gate);
    let port = Port::reserve_for_several();
    let mut gone = Backend::start_at(port.again(), &["m"], |_, wire| {
        wire.send(answer("200 OK", "", "gone"));
        Next::Read
    });
    let gateway = limited(&[&busy, &gone], once());
    gone.stop();
    let mut first = ask(&gateway, "/v1/0");
    gateway.wait_for_in_flight(0, 1);
    // Refused there, by what nobody has found out before.
    let mut second = ask(&gateway, "/v1/1");
    wait_for_queue(&gateway, 1.0);
    let back = Gate::default();
    let opened = back.clone();
    let _back = Backend::start_at(port, &["m"], move |_, wire| {
        opened.pass();
        wire.send(answer("200 OK", "", "back"));
        Next::Read
    });
    let mut third = ask(&gateway, "/v1/2");
    gateway.wait_for_in_flight(1, 1);
    let mut fourth = ask(&gateway, "/v1/3");
    wait_for_queue(&gateway, 2.0);
    for client in [&mut third, &mut fourth] {
        back.open();
        assert_eq!(client.message().unwrap().body, b"back");
    }
    wait_for_queue(&gateway, 1.0);
    for client in [&mut first, &mut second] {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

/// Those that are given a server which is gone have come before those behind them all the same.
#[test]
fn who_was_refused_keeps_its_place_in_the_queue() {
    let gates = [Gate::default(), Gate::default()];
    let stays = gated(&gates[0]);
    let gate = gates[1].clone();
    let mut gone = Backend::start(&["m"], move |_, wire| {
        gate.pass();
        wire.send(answer("200 OK", "", "gone"));
        Next::Close
    });
    let gateway = limited(&[&stays, &gone], once());
    let mut clients = Vec::new();
    for number in 0..2 {
        clients.push(ask(&gateway, &format!("/v1/{number}")));
        wait_until("it to be in flight", || {
            let health = gateway.health();
            let mut seen = health["backends"].as_array().unwrap().iter();
            let all = seen.try_fold(0, |sum, one| Some(sum + one["in_flight"].as_u64()?));
            (all == Some(number + 1)).then_some(())
        });
    }
    for number in 2..=6 {
        clients.push(ask(&gateway, &format!("/v1/{number}")));
        wait_for_queue(&gateway, f64::from(number - 1));
    }
    gone.stop();
    gates[1].open();
    // Refused by it, one after the other, until it is known to be down.
    gateway.wait_for_states(&["up", "down"]);
    wait_for_queue(&gateway, 5.0);
    for _ in 0..6 {
        gates[0].open();
    }
    for client in &mut clients {
        assert_eq!(client.head().unwrap().status(), 200);
    }
    let requests = stays.requests();
    let paths: Vec<_> = { requests.iter() }
        .map(|request| request.first_line.split(' ').nth(1).unwrap())
        .filter(|path| !["/v1/0", "/v1/1"].contains(path))
        .collect();
    assert_eq!(paths, ["/v1/2", "/v1/3", "/v1/4", "/v1/5", "/v1/6"]);
}

#[test]
fn who_was_refused_waits_also_where_the_queue_is_full() {
    let gate = Gate::default();
    let opened = gate.clone();
    let stays = Backend::start(&["m", "n"], move |_, wire| {
        opened.pass();
        wire.send(answer("200 OK", "", "stays"));
        Next::Read
    });
    let mut gone = Backend::named("gone", &["m"]);
    let gateway = limited(&[&stays, &gone], once().queue(1));
    let asks = |model: &str| {
        let mut client = gateway.connect();
        client.send(request("POST", "/v1/0", "", &chat(model)));
        client
    };
    let mut clients = vec![asks("n")];
    gateway.wait_for_in_flight(0, 1);
    clients.push(asks("n"));
    wait_for_queue(&gateway, 1.0);
    gone.stop();
    clients.push(asks("m"));
    wait_for_queue(&gateway, 2.0);
    assert_eq!(gateway.chat("n").error_code(), "queue_full");
    for client in &mut clients {
        gate.open();
        assert_eq!(client.message().unwrap().body, b"stays");
    }
}

/// Says 429 to the first it is asked, and serves the others; and how long it is to be spared.
fn has_enough_once(seconds: u32) -> Backend {
    let asked = AtomicUsize::new(0);
    Backend::start(&["m"], move |_, wire| {
        wire.send(match asked.fetch_add(1, Ordering::SeqCst) {
            0 => answer(
                "429 Too Many Requests",
                &format!("Retry-After: {seconds}\r\n"),
                "enough",
            ),
            _ => answer("200 OK", "", "rested"),
        });
        Next::Read
    })
}

#[test]
fn who_is_turned_away_waits_for_one_that_is_only_full_and_so_do_those_behind() {
    let gate = Gate::default();
    let (busy, tired) = (gated(&gate), has_enough_once(60));
    let gateway = limited(&[&busy, &tired], once());
    let mut clients = vec![ask(&gateway, "/v1/0")];
    gateway.wait_for_in_flight(0, 1);
    for number in 1..=3 {
        clients.push(ask(&gateway, &format!("/v1/{number}")));
        wait_for_queue(&gateway, f64::from(number));
    }
    for client in &mut clients {
        gate.open();
        assert_eq!(client.message().unwrap().status(), 200);
    }
    assert_eq!((busy.requests().len(), tired.requests().len()), (4, 1));
}

#[test]
fn who_waits_is_served_by_one_that_has_rested() {
    let gate = Gate::default();
    let (busy, tired) = (gated(&gate), has_enough_once(1));
    let gateway = limited(&[&busy, &tired], once());
    let mut first = ask(&gateway, "/v1/0");
    gateway.wait_for_in_flight(0, 1);
    let mut turned_away = ask(&gateway, "/v1/1");
    wait_for_queue(&gateway, 1.0);
    assert_eq!(gateway.chat("m").body, b"rested");
    // Not so who has asked it already.
    wait_for_queue(&gateway, 1.0);
    for client in [&mut first, &mut turned_away] {
        gate.open();
        assert_eq!(client.message().unwrap().status(), 200);
    }
}

#[test]
fn who_is_turned_away_and_waits_in_vain_gets_that_answer() {
    let gate = Gate::default();
    let (busy, tired) = (gated(&gate), has_enough_once(60));
    let options = once().queue_timeout(Duration::from_millis(50));
    let gateway = limited(&[&busy, &tired], options);
    let mut first = ask(&gateway, "/v1/0");
    gateway.wait_for_in_flight(0, 1);
    let answer = gateway.chat("m");
    assert_eq!((answer.status(), &*answer.body), (429, &b"enough"[..]));
    gate.open();
    assert_eq!(first.message().unwrap().status(), 200);
}

/// Answers its first look when it is let, with this status, and requests with its name.
fn looked_at_late(gate: &Gate, health: &'static str) -> Backend {
    let gate = gate.clone();
    Backend::bare(Port::reserve(), move |request, wire| {
        let is_look = request.header("user-agent") == Some("llmlb");
        let asked = request.first_line.split(' ').nth(1).unwrap();
        wire.send(match asked {
            "/health" => {
                gate.pass();
                answer(health, "", "{}")
            }
            "/v1/models" if is_look => answer("200 OK", "", r#"{"data":[{"id":"m"}]}"#),
            _ if is_look => answer("404 Not Found", "", ""),
            _ => answer("200 OK", "", "new"),
        });
        Next::Close
    })
}

#[test]
fn who_waits_when_all_backends_are_replaced_is_served_by_the_new_ones() {
    let (gate, looked) = (Gate::default(), Gate::default());
    let old = gated(&gate);
    let (gateway, mut clients) = busy(&old, once(), 3);
    let new = looked_at_late(&looked, "200 OK");
    gateway.send(one_at_a_time(&[&new]));
    wait_until("the new one to be known", || {
        (gateway.health()["backends"][0]["state"] == "unknown").then_some(())
    });
    // So does who comes meanwhile.
    clients.push(ask(&gateway, "/v1/4"));
    wait_for_queue(&gateway, 4.0);
    looked.open();
    for mut client in clients.drain(1..) {
        let told = client.message().unwrap();
        assert_eq!((told.status(), &*told.body), (200, &b"new"[..]));
    }
    gate.open();
    assert_eq!(clients[0].head().unwrap().status(), 200);
}

#[test]
fn who_waits_for_a_new_backend_that_is_down_is_told_at_once() {
    let looked = Gate::default();
    let new = looked_at_late(&looked, "500 Internal Server Error");
    let gateway = Gateway::with(&[new.url()], once());
    let mut waiting = ask(&gateway, "/v1/0");
    wait_for_queue(&gateway, 1.0);
    looked.open();
    let told = waiting.message().unwrap();
    let what = (told.status(), told.error_code());
    assert_eq!(what, (503, "backends_down".to_owned()));
}

#[test]
fn without_a_queue_nobody_waits_for_a_new_backend() {
    let looked = Gate::default();
    let new = looked_at_late(&looked, "200 OK");
    let gateway = Gateway::with(&[new.url()], once().queue(0));
    let told = gateway.chat("m");
    let what = (told.status(), &*told.error_code());
    assert_eq!(what, (503, "backends_down"));
    looked.open();
}

#[test]
fn a_new_backend_keeps_nobody_from_one_that_is_up() {
    let looked = Gate::default();
    let (old, new) = (has_enough_once(60), looked_at_late(&looked, "200 OK"));
    let gateway = Gateway::with(&[old.url()], once());
    gateway.now_before(&[old.url(), new.url()]);
    gateway.wait_for_states(&["up", "unknown"]);
    // It has enough, and the other may have some: that is waited for.
    let mut turned_away = ask(&gateway, "/v1/0");
    wait_for_queue(&gateway, 1.0);
    // Who comes then asks the one that there is.
    assert_eq!(gateway.chat("m").status(), 200);
    looked.open();
    assert_eq!(turned_away.message().unwrap().body, b"new");
}

#[test]
fn who_waits_for_what_has_gone_or_is_down_is_told_at_once() {
    for removed in [true, false] {
        let gate = Gate::default();
        let mut backend = gated(&gate);
        let (gateway, mut clients) = busy(&backend, often(), 2);
        if removed {
            gateway.now_before(&[]);
        } else {
            backend.stop();
        }
        for mut client in clients.drain(1..) {
            let told = client.message().unwrap();
            let what = (told.status(), told.error_code());
            assert_eq!(what, (503, "backends_down".to_owned()), "{removed}");
            assert!(told.header("retry-after").is_some());
        }
        gate.open();
        assert_eq!(clients[0].head().unwrap().status(), 200);
    }
}

#[test]
fn who_waits_when_the_end_comes_is_told_so() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (mut gateway, mut clients) = busy(&backend, once(), 3);
    gateway.drain();
    gateway.cut();
    // It may have been answered by half.
    assert!(clients.remove(0).head().is_none());
    for mut client in clients {
        let told = client.message().expect("an answer");
        let what = (told.status(), told.error_code());
        assert_eq!(what, (503, "shutting_down".to_owned()));
        assert!(told.header("retry-after").is_some(), "{told:?}");
        assert_eq!(told.header("connection"), Some("close"));
        assert!(client.is_at_end());
    }
    gateway.wait();
    gate.open();
}

/// Tells how many requests it works at, as llama.cpp or SGLang does, and answers when it may.
fn telling(path: &'static str, told: &'static str, gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::bare(Port::reserve(), move |request, wire| {
        if request.header("user-agent") == Some("llmlb") {
            let asked = request.first_line.split(' ').nth(1).unwrap();
            wire.send(match asked {
                "/health" => answer("200 OK", "", "{}"),
                _ if asked == path => answer("200 OK", "", told),
                _ => answer("404 Not Found", "", ""),
            });
            return Next::Close;
        }
        gate.pass();
        wire.send(answer("200 OK", "", "done"));
        Next::Read
    })
}

#[test]
fn a_server_that_tells_how_many_it_takes_gets_no_more() {
    for (path, told) in [
        (
            "/props",
            r#"{"total_slots":1,"default_generation_settings":{}}"#,
        ),
        (
            "/server_info",
            r#"{"max_running_requests":1,"version":"x"}"#,
        ),
    ] {
        let gate = Gate::default();
        let backend = telling(path, told, &gate);
        let gateway = Gateway::with(&[backend.url()], often());
        wait_until("what it tells to be known", || {
            (gateway.health()["backends"][0]["max"] == 1).then_some(())
        });
        let mut clients = [ask(&gateway, "/v1/0"), ask(&gateway, "/v1/1")];
        wait_for_queue(&gateway, 1.0);
        // Of a gateway, no one server's answer is true.
        let headers = "User-Agent: llmlb\r\n";
        assert_eq!(
            gateway.connect().ask("GET", path, headers, b"").status(),
            404
        );
        // Its owner knows better.
        let spec = BackendSpec::new(backend.url().parse().unwrap()).max(NonZeroUsize::new(2));
        gateway.send([spec].into_iter().collect());
        gateway.wait_for_in_flight(0, 2);
        gate.open();
        gate.open();
        for client in &mut clients {
            assert_eq!(client.message().unwrap().status(), 200);
        }
        gateway.now_before(&[backend.url()]);
        wait_until("what it tells to hold again", || {
            (gateway.health()["backends"][0]["max"] == 1).then_some(())
        });
    }
}
