//! What the owner says of the backends: one whole set at a time.
//!
//! Apart from what is found out about them (`backend`), so that a set can come from anywhere: a
//! command line, a file, DNS, a registry.

use std::num::{NonZeroU32, NonZeroUsize};

use crate::auth::ApiKey;
use crate::url::BackendUrl;

/// One backend, as its owner wants it to be used. Its URL is what tells it from others.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackendSpec {
    /// Where it is.
    pub url: BackendUrl,
    /// Its share of the requests, beside the weights of the others.
    pub weight: NonZeroU32,
    /// How many requests it may have in flight.
    pub max: Option<NonZeroUsize>,
    /// What it is shown, in place of [`Options::backend_api_key`](crate::Options::backend_api_key).
    pub key: Option<ApiKey>,
    /// Who named it, for those who read `/health`: "command line", a file, a name in DNS.
    pub origin: Option<String>,
}

impl BackendSpec {
    /// One of weight 1, without a limit or a key of its own.
    #[must_use]
    pub fn new(url: BackendUrl) -> Self {
        Self {
            url,
            weight: NonZeroU32::MIN,
            max: None,
            key: None,
            origin: None,
        }
    }

    /// Sets its share of the requests.
    #[must_use]
    pub fn weight(mut self, weight: NonZeroU32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets how many requests it may have in flight.
    #[must_use]
    pub fn max(mut self, max: Option<NonZeroUsize>) -> Self {
        self.max = max;
        self
    }

    /// Sets what it is shown.
    #[must_use]
    pub fn key(mut self, key: Option<ApiKey>) -> Self {
        self.key = key;
        self
    }

    /// Says who named it.
    #[must_use]
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self
    }
}

impl From<BackendUrl> for BackendSpec {
    fn from(url: BackendUrl) -> Self {
        Self::new(url)
    }
}

/// All backends there are. Of two with one URL, the first counts.
#[derive(Debug, Clone, Default)]
pub struct BackendSet(Vec<BackendSpec>);

impl BackendSet {
    /// Its backends, in the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, BackendSpec> {
        self.0.iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a BackendSet {
    type Item = &'a BackendSpec;
    type IntoIter = std::slice::Iter<'a, BackendSpec>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Into<BackendSpec>> FromIterator<T> for BackendSet {
    fn from_iter<I: IntoIterator<Item = T>>(specs: I) -> Self {
        let mut known = std::collections::HashSet::new();
        let specs = specs.into_iter().map(Into::into);
        Self(
            specs
                .filter(|spec| known.insert(spec.url.to_string()))
                .collect(),
        )
    }
}
