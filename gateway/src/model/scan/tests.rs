//! What is found, however it is cut into pieces.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::model::fuzzing;

const WANTED: &[&str] = &["model", "name"];

fn scan(pieces: &[&[u8]]) -> [Found; KEYS] {
    let mut scan = Scan::new(WANTED);
    for piece in pieces {
        scan.push(piece);
    }
    scan.found()
}

fn model(text: impl AsRef<[u8]>) -> Found {
    let text = text.as_ref();
    let [whole, ..] = scan(&[text]);
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    let [in_bytes, ..] = scan(&bytes);
    assert_eq!(whole, in_bytes, "{}", String::from_utf8_lossy(text));
    whole
}

fn text(name: &str) -> Found {
    Found::Text(name.to_owned())
}

#[test]
fn it_is_found_wherever_it_stands() {
    for body in [
        r#"{"model":"a"}"#,
        " \r\n\t{ \"model\" : \"a\" } ",
        r#"{"messages":[{"model":"no"},"\"}"],"model":"a","n":1}"#,
        r#"{"x":{"model":"no","y":[[["model"]]]},"model":"a"}"#,
        r#"{"n":-1.5e3,"t":true,"z":null,"model":"a"}"#,
        r#"{"s":"\\","q":"\"model\":\"no\"","model":"a"}"#,
    ] {
        assert_eq!(model(body), text("a"), "{body}");
    }
}

#[test]
fn what_servers_tolerate_is_tolerated() {
    assert_eq!(model("\u{feff}{\"model\":\"a\"}"), text("a"));
    assert_eq!(model("\u{feff} {\"model\":\"a\"}"), text("a"));
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "0123"] {
        let body = format!("{{\"temperature\":{number},\"model\":\"a\"}}");
        assert_eq!(model(&body), text("a"), "{body}");
    }
    let body = r#"{"model":"a","model":"b"}"#;
    assert_eq!(model(body), text("b"), "the last of equal keys counts");
    let body = "{\"mo\\u0064el\":\"\\u0061\\/\\\"\\ud83d\\ude00\u{e4}\"}";
    assert_eq!(model(body), text("a/\"\u{1f600}\u{e4}"));
    // Not whole, or followed by something: for the server to judge.
    assert_eq!(model(r#"{"model":"a""#), text("a"));
    assert_eq!(model(r#"{"model":"a"} trailing"#), text("a"));
    assert_eq!(model(r#"{"model":"a" nonsense"#), text("a"));
}

#[test]
fn no_depth_costs_any_stack() {
    let deep = "[".repeat(1 << 20);
    let body = format!("{{\"x\":{deep}{},\"model\":\"a\"}}", "]".repeat(1 << 20));
    let [whole, ..] = scan(&[body.as_bytes()]);
    assert_eq!(whole, text("a"));
}

#[test]
fn none_is_told_from_one_that_cannot_be_read() {
    for body in [
        "",
        "  ",
        "{}",
        "[]",
        "{",
        "model",
        "\"model\"",
        "[{\"model\":\"a\"}]",
        r#"{"model":null}"#,
        r#"{"model":""}"#,
        r#"{"Model":"a"}"#,
        r#"{"modeling":"a"}"#,
        r#"{"mod"#,
        r#"{model:"a"}"#,
        r#"{"x" "model":"a"}"#,
        "\u{feff}\u{feff}{\"model\":\"a\"}",
        "\u{ef}\u{bb}{\"model\":\"a\"}",
    ] {
        assert_eq!(model(body), Found::Nothing, "{body}");
    }
    for body in [
        r#"{"model":1}"#,
        r#"{"model":{"a":"b"}}"#,
        r#"{"model":["a"]}"#,
        r#"{"model":"a","model":2}"#,
        r#"{"model":"#,
        r#"{"model""#,
        r#"{"model":"a"#,
        r#"{"model":"\ud800"}"#,
        r#"{"model":"\x"}"#,
        "{\"model\":\"a\nb\"}",
        r#"{"model":nul"#,
        r#"{"model":{"a":"#,
    ] {
        assert_eq!(model(body), Found::Unreadable, "{body}");
    }
    assert_eq!(model(b"{\"model\":\"\xff\"}"), Found::Unreadable);
    assert_eq!(model(b"{\0\"\0m\0"), Found::Unreadable, "UTF-16");
    let long = format!("{{\"model\":\"{}\"}}", "x".repeat(LONGEST + 1));
    assert_eq!(model(long), Found::Unreadable);
    let long = format!("{{\"{}\":1,\"model\":\"a\"}}", "x".repeat(LONGEST * 2));
    assert_eq!(model(long), text("a"));
}

#[test]
fn the_first_byte_that_is_not_blank_decides() {
    let mut scan = Scan::new(WANTED);
    for piece in ["\u{feff}", " ", "\n\t"] {
        scan.push(piece.as_bytes());
        assert_eq!(scan.kind(), Kind::Undecided);
    }
    scan.push(b"{");
    assert_eq!(scan.kind(), Kind::Object);
    let mut scan = Scan::new(WANTED);
    scan.push(b"  [");
    assert_eq!(scan.kind(), Kind::Other);
}

#[test]
fn several_keys_are_found_at_once() {
    let body = br#"{"name":"b","model":"a"}"#;
    let [model, name, ..] = scan(&[body]);
    assert_eq!((model, name), (text("a"), text("b")));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        Just(json!("model")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((json_key(), inner), 0..4)
                .prop_map(|pairs| Value::from(Map::from_iter(pairs))),
        ]
    })
}

fn json_key() -> impl Strategy<Value = String> {
    prop_oneof![Just("model".to_owned()), Just("name".to_owned()), ".*"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn of_valid_json_it_finds_what_a_parser_finds(
        pairs in prop::collection::vec((json_key(), json_value()), 0..6),
        cuts in prop::collection::vec(any::<u8>(), 1..8),
        pretty in any::<bool>(),
    ) {
        let object = Value::from(Map::from_iter(pairs));
        let body = if pretty {
            serde_json::to_vec_pretty(&object).unwrap()
        } else {
            serde_json::to_vec(&object).unwrap()
        };
        fuzzing::scan_of_json(&[cuts.as_slice(), &[0], &body].concat());
        let [model, ..] = scan(&[&body]);
        let expected = match object.get("model") {
            None | Some(Value::Null) => Found::Nothing,
            Some(Value::String(name)) if name.is_empty() => Found::Nothing,
            Some(Value::String(name)) if name.len() < 500 => text(name),
            Some(Value::String(_)) => return Ok(()),
            Some(_) => Found::Unreadable,
        };
        prop_assert_eq!(model, expected);
    }

    #[test]
    fn of_anything_it_finds_the_same_in_all_pieces(
        body in prop::collection::vec(
            prop_oneof![
                prop::sample::select(br#"{}[]":,\ model"#.to_vec()),
                any::<u8>(),
            ],
            0..256,
        ),
        prefix in prop::sample::select(vec!["", "{", "{\"model\":", "{\"x\":[", "\u{feff}{"]),
        cuts in prop::collection::vec(any::<u8>(), 1..8),
    ) {
        let body = [prefix.as_bytes(), &body].concat();
        fuzzing::scan_of_json(&[cuts.as_slice(), &[0], &body].concat());
    }
}
