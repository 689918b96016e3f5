//! Where everything is in etcd. Apart, as this layout is the interface between versions: see
//! `docs/cluster.md`.

/// All of the keys below `/PREFIX/v1/`; a layout that old versions can't read gets another number.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    root: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            root: format!("/{prefix}/v1/"),
        }
    }

    /// The record of a server that is to be found.
    pub(crate) fn server(&self, service: &str, instance: &str) -> String {
        format!("{}servers/{service}/{instance}", self.root)
    }

    /// All servers, of one service or of all.
    pub(crate) fn servers(&self, service: Option<&str>) -> String {
        match service {
            Some(service) => format!("{}servers/{service}/", self.root),
            None => format!("{}servers/", self.root),
        }
    }

    /// The record of a server that is to be found no more, and has not ended.
    pub(crate) fn leaving(&self, service: &str, instance: &str) -> String {
        format!("{}{instance}", self.all_leaving(Some(service)))
    }

    /// All of those, of one service or of all.
    pub(crate) fn all_leaving(&self, service: Option<&str>) -> String {
        match service {
            Some(service) => format!("{}leaving/{service}/", self.root),
            None => format!("{}leaving/", self.root),
        }
    }

    /// The record of the active server of an exclusive service.
    pub(crate) fn holder(&self, service: &str) -> String {
        format!("{}holder", self.exclusive(Some(service)))
    }

    /// Whether the last holder's time is over; outlives leases.
    pub(crate) fn fence(&self, service: &str) -> String {
        format!("{}fence", self.exclusive(Some(service)))
    }

    /// Holder and fence, of one service or of all.
    pub(crate) fn exclusive(&self, service: Option<&str>) -> String {
        match service {
            Some(service) => format!("{}exclusive/{service}/", self.root),
            None => format!("{}exclusive/", self.root),
        }
    }

    /// A request to stop a server.
    pub(crate) fn stop(&self, service: &str, instance: &str) -> String {
        format!("{}stop/{service}/{instance}", self.root)
    }

    /// Written and removed by a check of rights.
    pub(crate) fn check(&self, nonce: &str) -> String {
        format!("{}check/{nonce}", self.root)
    }

    /// Service and the rest of a key, if it is below `servers/`, `leaving/` or `exclusive/`.
    pub(crate) fn split<'a>(&self, key: &'a str) -> Option<(Kind, &'a str, &'a str)> {
        let rest = key.strip_prefix(&self.root)?;
        let (kind, rest) = rest.split_once('/')?;
        let (service, rest) = rest.split_once('/')?;
        let kind = match (kind, rest) {
            ("servers", _) => Kind::Server,
            ("leaving", _) => Kind::Leaving,
            ("exclusive", "holder") => Kind::Holder,
            ("exclusive", "fence") => Kind::Fence,
            _ => return None,
        };
        Some((kind, service, rest))
    }
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Server,
    Leaving,
    Holder,
    Fence,
}

/// The first key after all that begin with `prefix`.
pub(crate) fn end_of(prefix: &str) -> String {
    // Every prefix here ends with a slash, and 0 comes right after it.
    let mut end = prefix.trim_end_matches('/').to_owned();
    end.push('0');
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_service_and_no_other() {
        let keys = Keys::new("llmlb");
        let from = keys.servers(Some("chat"));
        let to = end_of(&from);
        let within = |key: &str| from.as_str() <= key && key < to.as_str();
        assert!(within(&keys.server("chat", "gpu1:8000")));
        assert!(!within(&keys.server("chat-2", "gpu1:8000")));
        assert!(!within(&keys.server("chat.x", "gpu1:8000")));
        assert!(!within(&keys.server("cha", "gpu1:8000")));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys::new("a/b");
        let key = keys.server("chat", "gpu1:8000");
        assert_eq!(key, "/a/b/v1/servers/chat/gpu1:8000");
        assert_eq!(keys.split(&key), Some((Kind::Server, "chat", "gpu1:8000")));
        let key = keys.holder("chat");
        assert_eq!(keys.split(&key), Some((Kind::Holder, "chat", "holder")));
        for foreign in [
            "/a/b/v1/servers/chat",
            "/a/b/v2/servers/c/d",
            "/a/b/v1/exclusive/c/x",
            "",
        ] {
            assert_eq!(keys.split(foreign), None, "{foreign}");
        }
    }
}
