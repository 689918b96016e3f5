//! Requests that follow up on something go to the backend that made it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Backend, Gateway, Message, Next, STREAM, answer, chunk};

const JSON: &str = "Content-Type: application/json\r\n";

/// Answers what makes something with its ID, and all else with its name.
fn maker(name: &'static str) -> Backend {
    let made = Arc::new(AtomicUsize::new(0));
    Backend::start(&["m"], move |request, wire| {
        let mut words = request.first_line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        if method != "POST" || path.matches('/').count() > 2 {
            let kind = if path.starts_with("/v1/batches/") {
                let done = format!(r#"{{"id":"x","output_file_id":"out-{name}","who":"{name}"}}"#);
                answer("200 OK", JSON, &done)
            } else {
                answer("200 OK", "", name)
            };
            wire.send(kind);
            return Next::Read;
        }
        let number = made.fetch_add(1, Ordering::SeqCst);
        let id = format!("{name}-{number}");
        if request.header("accept") == Some("text/event-stream") {
            wire.send(STREAM);
            let event = format!(r#"{{"type":"response.created","response":{{"id":"{id}"}}}}"#);
            wire.send(chunk(&format!(
                "event: response.created\ndata: {event}\n\n"
            )));
            wire.send(chunk("data: {}\n\n"));
            wire.send("0\r\n\r\n");
        } else {
            let made = format!(r#"{{"object":"x","id":"{id}"}}"#);
            wire.send(answer("200 OK", JSON, &made));
        }
        Next::Read
    })
}

fn id(answer: &Message) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn who(answer: &Message) -> String {
    assert_eq!(answer.status(), 200, "{answer:?}");
    String::from_utf8(answer.body.clone()).unwrap()
}

#[test]
fn what_was_made_is_asked_for_where_it_was() {
    let backends = [maker("a"), maker("b")];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for kind in [
        "responses",
        "files",
        "batches",
        "conversations",
        "fine_tuning",
    ] {
        let path = match kind {
            "fine_tuning" => "/v1/fine_tuning".to_owned() + "/jobs",
            kind => format!("/v1/{kind}"),
        };
        if kind == "fine_tuning" {
            continue;
        }
        for _ in 0..3 {
            let made = id(&gateway.connect().ask("POST", &path, "", b"{}"));
            let name = &made[..1];
            for _ in 0..3 {
                let again = gateway.get(&format!("{path}/{made}"));
                let body = who(&again);
                assert!(body.contains(name), "{path}: {made} at {body}");
            }
        }
    }
}

#[test]
fn bodies_follow_up_too_and_streams_make_something() {
    let backends = [maker("a"), maker("b")];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for _ in 0..3 {
        let stream = "Accept: text/event-stream\r\n";
        let made = gateway
            .connect()
            .ask("POST", "/v1/responses", stream, b"{\"model\":\"m\"}");
        let text = String::from_utf8(made.body).unwrap();
        let made = text
            .split("\"id\":\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        for _ in 0..3 {
            let body = format!(r#"{{"model":"m","previous_response_id":"{made}"}}"#);
            let next = gateway
                .connect()
                .ask("POST", "/v1/responses", "", body.as_bytes());
            assert_eq!(id(&next)[..1], made[..1]);
        }
    }
}

#[test]
fn the_results_of_a_batch_are_where_it_ran() {
    let backends = [maker("a"), maker("b")];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for _ in 0..3 {
        let file = id(&gateway.connect().ask("POST", "/v1/files", "", b"data"));
        let body = format!(r#"{{"input_file_id":"{file}"}}"#);
        let batch = id(&gateway
            .connect()
            .ask("POST", "/v1/batches", "", body.as_bytes()));
        assert_eq!(batch[..1], file[..1]);
        let done = gateway.get(&format!("/v1/batches/{batch}")).json();
        let output = done["output_file_id"].as_str().unwrap();
        for _ in 0..3 {
            let content = gateway.get(&format!("/v1/files/{output}/content"));
            assert_eq!(who(&content), file[..1]);
        }
    }
}

#[test]
fn when_its_maker_is_gone_another_may_say_so() {
    let mut backends = [maker("a"), maker("b")];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    let made = id(&gateway.connect().ask("POST", "/v1/responses", "", b"{}"));
    let gone = usize::from(made.starts_with('b'));
    backends[gone].stop();
    let mut states = ["up", "up"];
    states[gone] = "down";
    gateway.wait_for_states(&states);
    let answer = gateway.get(&format!("/v1/responses/{made}"));
    assert_ne!(who(&answer), made[..1]);
}
