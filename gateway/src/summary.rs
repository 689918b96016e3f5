//! The metrics added up for people to look at: a backend's, a model's, all.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily};

#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) backends: BTreeMap<String, Sum>,
    pub(crate) models: BTreeMap<String, Sum>,
    pub(crate) all: Sum,
}

#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) tokens_in: u64,
    pub(crate) tokens_out: u64,
    /// In seconds.
    pub(crate) first_token_sum: f64,
    pub(crate) first_token_count: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.tokens_in += other.tokens_in;
        self.tokens_out += other.tokens_out;
        self.first_token_sum += other.first_token_sum;
        self.first_token_count += other.first_token_count;
    }

    /// On average, in seconds.
    pub(crate) fn first_token(&self) -> Option<f64> {
        // Counts of requests are far from where a float loses one.
        #[expect(clippy::cast_precision_loss)]
        let count = self.first_token_count as f64;
        (count > 0.0).then(|| self.first_token_sum / count)
    }
}

impl Summary {
    /// Adds those of these that count.
    pub(crate) fn add_all(&mut self, families: &[MetricFamily], counts: impl Fn(&Metric) -> bool) {
        for family in families {
            for metric in family.get_metric().iter().filter(|metric| counts(metric)) {
                match family.name() {
                    "llmlb_requests_total" => {
                        self.add(metric, &["backend"], |sum| sum.requests += count(metric));
                    }
                    "llmlb_model_requests_total" => {
                        self.add_model(metric, |sum| sum.requests += count(metric));
                    }
                    "llmlb_backend_failures_total" => {
                        self.add(metric, &["backend"], |sum| sum.failures += count(metric));
                    }
                    "llmlb_tokens_total" => {
                        let out = label(metric, "direction") == Some("out");
                        self.add(metric, &["backend", "model"], |sum| {
                            let tokens = if out {
                                &mut sum.tokens_out
                            } else {
                                &mut sum.tokens_in
                            };
                            *tokens += count(metric);
                        });
                    }
                    "llmlb_time_to_first_token_seconds" => {
                        let times = metric.get_histogram();
                        self.add(metric, &["backend", "model"], |sum| {
                            sum.first_token_sum += times.get_sample_sum();
                            sum.first_token_count += times.get_sample_count();
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Adds what is told of no more, to all and to the models that there still are.
    pub(crate) fn add_past(&mut self, past: &Self) {
        self.all.add(&past.all);
        for (model, sum) in &mut self.models {
            if let Some(past) = past.models.get(model) {
                sum.add(past);
            }
        }
    }

    /// Keeps of what is told of no more what there may be a use for.
    pub(crate) fn keep_models_of(&mut self, present: &Self) {
        self.backends.clear();
        let models = &present.models;
        self.models.retain(|model, _| models.contains_key(model));
    }

    fn add(&mut self, metric: &Metric, to: &[&str], mut add: impl FnMut(&mut Sum)) {
        add(&mut self.all);
        if to.contains(&"backend")
            && let Some(backend) = label(metric, "backend")
        {
            add(self.backends.entry(backend.to_owned()).or_default());
        }
        if to.contains(&"model") {
            self.add_model(metric, add);
        }
    }

    fn add_model(&mut self, metric: &Metric, add: impl FnOnce(&mut Sum)) {
        if let Some(model) = label(metric, "model") {
            add(self.models.entry(model.to_owned()).or_default());
        }
    }
}

/// A counter counts whole things.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn count(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

pub(crate) fn label<'a>(metric: &'a Metric, name: &str) -> Option<&'a str> {
    let labels = metric.get_label().iter();
    let mut named = labels.filter(|label| label.name() == name);
    named.next().map(|label| label.value())
}
