//! examples/cluster does what it says.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use llmlb_tests::{Finished, llmlb_binary};

#[test]
fn three_hosts_find_and_stop_each_others_servers() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cluster/run.sh");
    if Command::new("python3").arg("--version").output().is_err() {
        return println!("skipped: there is no python3");
    }
    let mut run = Command::new("bash");
    run.arg(script)
        .env("LLMLB", llmlb_binary())
        .env("ETCD", llmlb_cluster_tests::etcd::binary());
    let done = Finished::of(run.output().unwrap()).expect(0);
    assert!(
        done.stdout.contains("by 127.0.0.3: I am 127.0.0."),
        "{done:?}"
    );
    assert!(
        done.stdout
            .contains("To stop: llmlb stop --cluster etcd://"),
        "{done:?}"
    );
    assert!(done.stdout.ends_with("No servers running\n"), "{done:?}");
}
