//! What it costs to find the model in a body, beside a JSON parser that looks for nothing else.

#![allow(missing_docs, clippy::unwrap_used)]

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llmlb_gateway::measure::model_in;
use serde::Deserialize;

fn chat(len: usize) -> Vec<u8> {
    let text = r#"Tell me of \"quotes\" and\nlines. "#.repeat(len / 34);
    let message = format!(r#"{{"role":"user","content":"{text}"}}"#);
    format!(r#"{{"messages":[{message}],"temperature":0.7,"stream":true,"model":"meta/llama-3"}}"#)
        .into_bytes()
}

fn parsed(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Cow<'a, str>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    Some(named.model.into_owned())
}

fn searching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("search");
    for len in [0, 1_000, 100_000] {
        let body = chat(len);
        group.throughput(Throughput::Bytes(body.len() as u64));
        assert_eq!(model_in(&body, body.len()), parsed(&body));
        group.bench_function(BenchmarkId::new("search", len), |bencher| {
            bencher.iter(|| model_in(black_box(&body), body.len()).unwrap());
        });
        group.bench_function(BenchmarkId::new("parser", len), |bencher| {
            bencher.iter(|| parsed(black_box(&body)).unwrap());
        });
    }
    let blanks = " ".repeat(100_000).into_bytes();
    group.throughput(Throughput::Bytes(blanks.len() as u64));
    group.bench_function("blanks in single bytes", |bencher| {
        bencher.iter(|| model_in(black_box(&blanks), 1));
    });
    group.finish();
}

criterion_group!(benches, searching);
criterion_main!(benches);
