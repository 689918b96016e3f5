//! What docs/cluster.md shows is so.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use llmlb_lock_cluster::{Record, Timing};

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cluster.md");
    std::fs::read_to_string(page).unwrap()
}

fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let rest = page.split_once(&format!("```{language}\n")).unwrap().1;
    rest.split_once("\n```").unwrap().0
}

/// The crate's own example is compiled; the page shows a part of it.
#[test]
fn the_example_is_the_one_that_is_compiled() {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster/src/lib.rs");
    let lib = std::fs::read_to_string(lib).unwrap();
    let page = page();
    for line in block(&page, "rust").lines().filter(|line| !line.is_empty()) {
        assert!(lib.contains(&format!("//! {line}\n")), "{line}");
    }
}

#[test]
fn the_record_has_the_fields_that_are_told() {
    let page = page();
    let shown: serde_json::Value = serde_json::from_str(block(&page, "json")).unwrap();
    let full = Record::new("chat", "gpu1", 8000)
        .with_token(1)
        .with_models(["m"])
        .with_slots(1);
    let full = serde_json::to_value(&full).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names(&shown), names(&full));
    for name in names(&full) {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn the_table_of_times_is_right() {
    let page = page();
    let rows = page
        .lines()
        .skip_while(|line| !line.contains("longest drain"));
    let mut seen = 0;
    for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<f64> = row
            .split('|')
            .filter_map(|cell| cell.trim().strip_suffix(" s")?.parse().ok())
            .collect();
        let secs = Duration::from_secs_f64;
        let [ttl, renew, request, kill, _, drain] = cells[..] else {
            panic!("{row}");
        };
        let timing = Timing::new(secs(ttl), secs(drain)).unwrap();
        assert_eq!(timing.renew(), secs(renew), "{row}");
        assert_eq!(timing.request(), secs(request), "{row}");
        assert_eq!(timing.kill(), secs(kill), "{row}");
        assert!(Timing::new(secs(ttl), secs(drain + 0.1)).is_err(), "{row}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}
