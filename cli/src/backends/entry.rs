//! One backend, as it is named on a command line or in a file.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;

use llmlb_gateway::{ApiKey, BackendSpec, BackendUrl, BackendUrlError};

/// Before a URL whose host stands for all its addresses.
const DNS: &str = "dns+";

/// A backend, or all that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    One(BackendUrl),
    /// `dns+http://HOST`: one backend for each address.
    Each(BackendUrl),
}

impl FromStr for Place {
    type Err = BackendUrlError;

    fn from_str(text: &str) -> Result<Self, BackendUrlError> {
        match text.strip_prefix(DNS) {
            Some(url) => url.parse().map(Self::Each),
            None => text.parse().map(Self::One),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(url) => write!(f, "{url}"),
            Self::Each(url) => write!(f, "{DNS}{url}"),
        }
    }
}

impl Place {
    pub(super) fn url(&self) -> &BackendUrl {
        match self {
            Self::One(url) | Self::Each(url) => url,
        }
    }
}

/// Parses it, and repeats it in errors where it is no secret.
pub(super) fn place(url: &str) -> Result<Place, String> {
    url.parse().map_err(|e| {
        // What is before an @ may be a password.
        if url.contains('@') {
            format!("{e}")
        } else {
            format!("'{url}': {e}")
        }
    })
}

#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) place: Place,
    pub(crate) weight: NonZeroU32,
    pub(crate) max: Option<NonZeroUsize>,
    pub(crate) key: Option<ApiKey>,
    /// Where the key is from.
    variable: Option<String>,
    /// In its file, where it is of one.
    pub(super) line: Option<usize>,
}

impl Backend {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            weight: NonZeroU32::MIN,
            max: None,
            key: None,
            variable: None,
            line: None,
        }
    }

    /// Whether another one of the same place is to be used in the same way.
    pub(super) fn is_used_as(&self, other: &Self) -> bool {
        let use_of = |b: &Self| (b.weight, b.max, b.variable.clone());
        use_of(self) == use_of(other)
    }

    /// The same at one place.
    pub(super) fn at(&self, url: BackendUrl, origin: &str) -> BackendSpec {
        BackendSpec::new(url)
            .weight(self.weight)
            .max(self.max)
            .key(self.key.clone())
            .origin(origin)
    }

    /// The key that a variable of the environment has.
    pub(super) fn set_key_from(&mut self, variable: &str) -> Result<(), String> {
        let key = std::env::var(variable)
            .map_err(|_| format!("the environment has no variable {variable}"))?;
        let key = ApiKey::parse(&key).map_err(|e| format!("the key in {variable}: {e}"))?;
        self.key = Some(key);
        self.variable = Some(variable.to_owned());
        Ok(())
    }
}
