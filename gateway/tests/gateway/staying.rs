//! A conversation stays with the backend that has its beginning in memory, as long as that is not
//! much busier than the others.

use std::collections::{BTreeMap, BTreeSet};

use llmlb_gateway::Affinity;

use crate::support::{Backend, Gate, Gateway, Next, answer, once, request};

/// A conversation's requests: each has the messages of the one before, and two more.
fn turn(topic: &str, turns: usize) -> Vec<u8> {
    turn_after(&[("system", "be brief".to_owned())], topic, turns)
}

/// The same, with what was said before it.
fn turn_after(before: &[(&str, String)], topic: &str, turns: usize) -> Vec<u8> {
    let said = |role: &str, text: String| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
    let before = before.iter();
    let mut messages: Vec<_> = before
        .map(|(role, text)| said(role, text.clone()))
        .collect();
    for turn in 0..=turns {
        if turn > 0 {
            messages.push(said("assistant", format!("answer {turn}")));
        }
        messages.push(said("user", format!("{topic} {turn}")));
    }
    let messages = messages.join(",");
    format!(r#"{{"model":"m","messages":[{messages}],"stream":false}}"#).into_bytes()
}

fn ask(gateway: &Gateway, headers: &str, body: &[u8]) -> String {
    let mut client = gateway.connect();
    let answer = client.ask("POST", "/v1/chat/completions", headers, body);
    assert_eq!(answer.status(), 200, "{answer:?}");
    String::from_utf8(answer.body).unwrap()
}

fn named(names: &[&'static str]) -> (Vec<Backend>, Vec<String>) {
    let backends: Vec<_> = names.iter().map(|name| Backend::named(name, &[])).collect();
    let urls = backends.iter().map(Backend::url).collect();
    (backends, urls)
}

fn with(urls: &[String], affinity: Affinity) -> Gateway {
    Gateway::with(urls, once().affinity(affinity))
}

#[test]
fn a_conversation_finds_its_server_again_and_others_go_elsewhere() {
    let (_backends, urls) = named(&["a", "b", "c"]);
    let gateway = with(&urls, Affinity::Prefix);
    let mut homes = BTreeMap::new();
    for topic in 0..24 {
        let topic = format!("topic {topic}");
        *homes
            .entry(ask(&gateway, "", &turn(&topic, 0)))
            .or_insert(0) += 1;
    }
    assert_eq!(homes.len(), 3, "{homes:?}");
    for topic in 0..6 {
        let topic = format!("topic {topic}");
        let first = ask(&gateway, "", &turn(&topic, 0));
        for turns in 1..5 {
            assert_eq!(ask(&gateway, "", &turn(&topic, turns)), first, "{topic}");
        }
    }
}

#[test]
fn balancers_side_by_side_agree_on_where_a_conversation_begins() {
    let (_backends, urls) = named(&["a", "b", "c", "d"]);
    let (one, other) = (with(&urls, Affinity::Prefix), with(&urls, Affinity::Prefix));
    for topic in 0..16 {
        let body = turn(&format!("topic {topic}"), 0);
        assert_eq!(ask(&one, "", &body), ask(&other, "", &body));
    }
}

/// Also of one that the other has begun, with whatever comes before its first question.
#[test]
fn balancers_side_by_side_agree_on_where_a_conversation_goes_on() {
    let (_backends, urls) = named(&["a", "b", "c", "d"]);
    let (one, other) = (with(&urls, Affinity::Prefix), with(&urls, Affinity::Prefix));
    let greeting = ("assistant", "how can I help?".to_owned());
    let system = ("system", "be brief".to_owned());
    let developer = ("developer", "no lists".to_owned());
    for before in [
        vec![],
        vec![system.clone()],
        vec![greeting.clone()],
        vec![system, developer, greeting],
    ] {
        let mut homes = BTreeSet::new();
        for topic in 0..16 {
            let body = |turns| turn_after(&before, &format!("topic {topic}"), turns);
            let home = ask(&one, "", &body(0));
            // The first that this one sees of it.
            for turns in [1, 3] {
                assert_eq!(ask(&other, "", &body(turns)), home, "{before:?} {topic}");
            }
            homes.insert(home);
        }
        assert!(homes.len() > 2, "{before:?} {homes:?}");
    }
}

#[test]
fn a_conversation_that_is_too_big_to_keep_stays_as_well() {
    let (_backends, urls) = named(&["a", "b", "c", "d"]);
    let (one, other) = (with(&urls, Affinity::Prefix), with(&urls, Affinity::Prefix));
    let big = "x".repeat(5 << 20);
    let mut homes = BTreeSet::new();
    for topic in 0..6 {
        // Of one the first question is all that is kept, or not even that.
        let first = turn_after(&[], &format!("topic {topic} {big}"), 0);
        let home = ask(&one, "", &first);
        let body = turn_after(&[], &format!("topic {topic} {big}"), 1);
        assert_eq!(ask(&one, "", &body), home);
        assert_eq!(ask(&other, "", &body), home);
        let brief = ("user", format!("another topic {topic}"));
        let home = ask(
            &one,
            "",
            &turn_after(std::slice::from_ref(&brief), "brief", 0),
        );
        let body = turn_after(&[brief], &big, 0);
        assert_eq!(ask(&one, "", &body), home);
        assert_eq!(ask(&other, "", &body), home);
        homes.insert(home);
    }
    assert!(homes.len() > 1);
}

#[test]
fn a_session_is_known_by_its_name() {
    let (_backends, urls) = named(&["a", "b", "c"]);
    for affinity in [Affinity::Session, Affinity::Prefix] {
        let gateway = with(&urls, affinity);
        let homes: Vec<_> = (0..12)
            .map(|session| {
                let header = format!("X-Session-ID: s{session}\r\n");
                let first = ask(&gateway, &header, &turn("one", 0));
                for topic in ["two", "three"] {
                    assert_eq!(ask(&gateway, &header, &turn(topic, 1)), first);
                }
                first
            })
            .collect();
        assert!(homes.iter().any(|home| *home != homes[0]), "{homes:?}");
    }
}

#[test]
fn a_server_that_leaves_moves_only_its_own() {
    let (_backends, urls) = named(&["a", "b", "c", "d"]);
    let gateway = with(&urls, Affinity::Session);
    let header = |session: usize| format!("X-Session-ID: s{session}\r\n");
    let all = |gateway: &Gateway| -> Vec<String> {
        let home = |session| ask(gateway, &header(session), &turn("x", 0));
        (0..32).map(home).collect()
    };
    let before = all(&gateway);
    gateway.now_before(&urls[..3]);
    crate::support::wait_until("it has left", || {
        (gateway.health()["backends"].as_array().unwrap().len() == 3).then_some(())
    });
    let after = all(&gateway);
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before == "d", "{before} {after}");
    }
    assert!(before.contains(&"d".to_owned()) && !after.contains(&"d".to_owned()));
}

#[test]
fn who_is_much_busier_is_left_alone() {
    let gate = Gate::default();
    let server = |name: &'static str| {
        let gate = gate.clone();
        Backend::start(&[], move |request, wire| {
            if request.first_line.contains("/held") {
                gate.pass();
            }
            wire.send(answer("200 OK", "", name));
            Next::Read
        })
    };
    let backends = [server("a"), server("b")];
    let urls = backends.each_ref().map(Backend::url);
    let gateway = with(&urls, Affinity::Prefix);
    let home = ask(&gateway, "", &turn("topic", 0));
    let at = usize::from(home == "b");
    // Held requests of the same conversation: one more than the other has is borne, no more.
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(request("POST", "/v1/held", "", &turn("topic", 0)));
            client
        })
        .collect();
    crate::support::wait_until("three in flight", || {
        let health = gateway.health();
        let flying = |index: usize| health["backends"][index]["in_flight"].as_u64().unwrap();
        (flying(at) == 2 && flying(1 - at) == 1).then_some(())
    });
    held.iter().for_each(|_| gate.open());
    for mut client in held {
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

#[test]
fn off_is_whose_turn_it_is() {
    let (_backends, urls) = named(&["a", "b"]);
    let gateway = with(&urls, Affinity::Off);
    let order: String = (0..6).map(|_| ask(&gateway, "", &turn("x", 0))).collect();
    assert!("abababa".contains(&order), "{order}");
}
