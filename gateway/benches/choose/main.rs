//! What it costs to choose a backend, in processor time, so that nothing else that runs counts. The
//! bar: 5 microseconds among 1,000.

#![allow(missing_docs, clippy::unwrap_used)]

mod processor_time;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use llmlb_gateway::measure::{Choosing, Waiting};
use processor_time::ProcessorTime;

fn choosing(criterion: &mut Criterion<ProcessorTime>) {
    let mut group = criterion.benchmark_group("choose");
    for count in [1, 10, 100, 1_000] {
        let backends = Choosing::among(count, 10).unwrap();
        let own = "model-0-9";
        for (what, model) in [
            ("any", None),
            ("shared", Some("shared")),
            ("own", Some(own)),
        ] {
            group.bench_function(BenchmarkId::new(what, count), |bencher| {
                bencher.iter(|| assert!(backends.take(black_box(model))));
            });
        }
        let mut anchor = 0_u64;
        group.bench_function(BenchmarkId::new("conversation", count), |bencher| {
            bencher.iter(|| {
                anchor = anchor.wrapping_add(0x9e37_79b9_7f4a_7c15);
                assert!(backends.begin(black_box(Some("shared")), anchor));
            });
        });
    }
    group.finish();
}

/// Where others wait for another server, each for another model.
fn passing_by(criterion: &mut Criterion<ProcessorTime>) {
    let mut group = criterion.benchmark_group("pass by those who wait");
    for count in [0, 1, 10, 100, 500] {
        let waiting = Waiting::for_models(count).unwrap();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| assert!(waiting.pass_by()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ProcessorTime);
    targets = choosing, passing_by
}
criterion_main!(benches);
