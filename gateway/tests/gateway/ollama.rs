//! Ollama servers, which list and load models in their own way.

use std::sync::{Arc, Mutex};

use crate::support::{Backend, Gateway, Message, Next, Port, answer, often, wait_until};

/// One that has these models, and these of them loaded; answers all else with its name.
fn server(
    name: &'static str,
    models: &'static [&str],
    loaded: &Arc<Mutex<Vec<&'static str>>>,
) -> Backend {
    let loaded = Arc::clone(loaded);
    Backend::bare(Port::reserve(), move |request, wire| {
        let entries = |models: &[&str]| {
            let entry = |m: &&str| serde_json::json!({ "name": m, "model": m, "from": name });
            let models: Vec<_> = models.iter().map(entry).collect();
            serde_json::json!({ "models": models }).to_string()
        };
        let body = match request.first_line.split(' ').nth(1).unwrap() {
            "/api/tags" => entries(models),
            "/api/ps" => entries(&loaded.lock().unwrap()),
            "/v1/models" => {
                let entry = |m: &&str| serde_json::json!({ "id": m });
                let data: Vec<_> = models.iter().map(entry).collect();
                serde_json::json!({ "object": "list", "data": data }).to_string()
            }
            "/health" => {
                wire.send(answer("404 Not Found", "", ""));
                return Next::Read;
            }
            _ => name.to_owned(),
        };
        wire.send(answer("200 OK", "", &body));
        Next::Read
    })
}

fn names(list: &Message) -> Vec<String> {
    let list = list.json();
    let models = list["models"].as_array().unwrap();
    let name = |m: &serde_json::Value| m["name"].as_str().unwrap().to_owned();
    models.iter().map(name).collect()
}

fn loaded(models: &[&'static str]) -> Arc<Mutex<Vec<&'static str>>> {
    Arc::new(Mutex::new(models.to_vec()))
}

#[test]
fn their_lists_are_put_together() {
    let a = server("a", &["x:latest", "y:7b"], &loaded(&["x:latest"]));
    let b = server("b", &["y:7b", "z:1b"], &loaded(&["z:1b"]));
    let other = Backend::named("other", &["o"]);
    let gateway = Gateway::before(&[other.url(), a.url(), b.url()]);
    assert_eq!(
        names(&gateway.get("/api/tags")),
        ["x:latest", "y:7b", "z:1b"]
    );
    assert_eq!(names(&gateway.get("/api/ps")), ["x:latest", "z:1b"]);
    assert!(other.requests().is_empty());
}

#[test]
fn where_there_is_none_the_path_is_a_backends_own() {
    let backends = [Backend::named("a", &["m"]), Backend::named("b", &["m"])];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    assert_eq!(gateway.get("/api/tags").status(), 200);
    assert_eq!(
        backends.iter().map(|b| b.requests().len()).sum::<usize>(),
        1
    );
}

#[test]
fn who_has_the_model_loaded_is_asked() {
    let (at_a, at_b) = (loaded(&[]), loaded(&["m:latest"]));
    let models: &[&str] = &["m:latest", "n:latest"];
    let backends = [server("a", models, &at_a), server("b", models, &at_b)];
    let gateway = Gateway::with(&backends.each_ref().map(Backend::url), often());
    for _ in 0..6 {
        assert_eq!(gateway.chat("m").body, b"b");
        assert_eq!(gateway.chat("m:latest").body, b"b");
    }
    // What nobody has loaded is loaded once.
    let first = gateway.chat("n").body;
    let holder = if first == b"a" { &at_a } else { &at_b };
    holder.lock().unwrap().push("n:latest");
    for _ in 0..6 {
        assert_eq!(gateway.chat("n").body, first);
    }
    // It has moved.
    *at_a.lock().unwrap() = vec!["m:latest"];
    *at_b.lock().unwrap() = Vec::new();
    wait_until("the other to be asked", || {
        (gateway.chat("m").body == b"a").then_some(())
    });
}
