//! Certificates, users and passwords, against real etcd.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use llmlb_cluster_tests::etcd::{Etcd, base64};
use llmlb_cluster_tests::tls::{certificates, client_certificates};
use llmlb_cluster_tests::{eventually, scratch};
use llmlb_lock_cluster::{Cluster, ClusterError, ClusterUrl, Interrupt};

#[test]
fn with_certificates_each_side_proves_who_it_is() {
    let dir = scratch();
    let [ca, cert, key] = certificates(dir.path(), "good");
    let [other_ca, other_cert, other_key] = certificates(dir.path(), "other");
    let etcd = Etcd::start_with(1, &client_certificates(&ca, &cert, &key));
    let port = etcd.nodes[0].port;
    let url = |scheme: &str, ca: &Path, cert: &Path, key: &Path| {
        let (ca, cert, key) = (ca.display(), cert.display(), key.display());
        let url = format!("{scheme}://127.0.0.1:{port}/t?ca={ca}&cert={cert}&key={key}");
        Cluster::connect(&ClusterUrl::parse(&url).unwrap()).unwrap()
    };
    let interrupt = Interrupt::new();
    let good = url("etcds", &ca, &cert, &key);
    eventually("it answers", || good.servers(None, &interrupt).is_ok());
    let registration = good
        .register(llmlb_lock_cluster::Record::new("chat", "gpu1", 8000))
        .unwrap();
    let watch = good.watch(None).unwrap();
    assert!(
        registration
            .wait_registered(llmlb_cluster_tests::PATIENCE, &interrupt)
            .unwrap()
    );
    assert!(
        watch
            .next(Some(llmlb_cluster_tests::PATIENCE), &interrupt)
            .unwrap()
            .is_some()
    );
    drop((registration, watch));

    // Who it is that answers, and who asks, is not taken on trust.
    for (bad, why) in [
        (
            url("etcds", &other_ca, &cert, &key),
            "a server by another CA",
        ),
        (
            url("etcds", &ca, &other_cert, &other_key),
            "a client by another CA",
        ),
    ] {
        let error = bad.servers(None, &interrupt).expect_err(why);
        assert!(
            matches!(error, ClusterError::Unreachable { .. }),
            "{why}: {error}"
        );
    }
    let plain = ClusterUrl::parse(&format!("etcd://127.0.0.1:{port}/t")).unwrap();
    assert!(
        Cluster::connect(&plain)
            .unwrap()
            .servers(None, &interrupt)
            .is_err()
    );
}

#[test]
fn a_certificate_that_can_not_be_used_is_an_error_that_names_the_file() {
    let dir = scratch();
    let junk = dir.path().join("junk.pem");
    std::fs::write(&junk, "junk").unwrap();
    let [ca, ..] = certificates(dir.path(), "good");
    for (url, file) in [
        ("etcds://h?ca=/nowhere.pem".to_owned(), "/nowhere.pem"),
        (format!("etcds://h?ca={}", junk.display()), "junk.pem"),
        (
            format!(
                "etcds://h?ca={0}&cert={0}&key={1}",
                ca.display(),
                junk.display()
            ),
            "junk.pem",
        ),
    ] {
        let error = Cluster::connect(&ClusterUrl::parse(&url).unwrap()).unwrap_err();
        assert!(matches!(error, ClusterError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[test]
fn with_users_on_who_has_no_rights_is_told_and_a_login_that_ends_is_renewed() {
    // Tokens that end after a second.
    let etcd = Etcd::start_with(1, &["--auth-token-ttl=1".into()]);
    for (path, body) in [
        (
            "auth/user/add",
            r#"{"name":"root","password":"r"}"#.to_owned(),
        ),
        (
            "auth/user/add",
            r#"{"name":"llmlb","password":"secret"}"#.into(),
        ),
        ("auth/role/add", r#"{"name":"root"}"#.into()),
        ("auth/role/add", r#"{"name":"llmlb"}"#.into()),
        (
            "auth/role/grant",
            format!(
                r#"{{"name":"llmlb","perm":{{"permType":"READWRITE","key":"{}","range_end":"{}"}}}}"#,
                base64("/t/"),
                base64("/t0"),
            ),
        ),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#.into()),
        (
            "auth/user/grant",
            r#"{"user":"llmlb","role":"llmlb"}"#.into(),
        ),
        ("auth/enable", "{}".into()),
    ] {
        etcd.call(path, &body);
    }
    let interrupt = Interrupt::new();
    let of = |prefix: &str, password: Option<&str>| {
        let url = etcd.url(prefix);
        let url = match password {
            Some(password) => url.with_user("llmlb", password),
            None => url,
        };
        Cluster::connect(&url).unwrap()
    };
    let good = of("t", Some("secret"));
    good.servers(None, &interrupt).unwrap();
    let check = good.check(&interrupt).unwrap();
    assert!(check.rights.is_ok(), "{:?}", check.rights);
    let watch = good.watch(None).unwrap();
    assert!(
        watch
            .next(Some(llmlb_cluster_tests::PATIENCE), &interrupt)
            .unwrap()
            .is_some()
    );
    // The token of the login has ended meanwhile.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    good.servers(None, &interrupt).unwrap();

    let foreign = of("other", Some("secret"))
        .servers(None, &interrupt)
        .unwrap_err();
    assert!(
        foreign.to_string().contains("grant the user readwrite"),
        "{foreign}"
    );
    let wrong = of("t", Some("wrong"))
        .servers(None, &interrupt)
        .unwrap_err();
    assert!(
        wrong.to_string().contains("check user and password"),
        "{wrong}"
    );
    assert!(!wrong.to_string().contains("wrong"), "{wrong}");
    let nobody = of("t", None).servers(None, &interrupt).unwrap_err();
    assert!(nobody.to_string().contains("password"), "{nobody}");
}

#[test]
fn a_user_is_no_hindrance_where_nobody_has_to_log_in() {
    let etcd = Etcd::start(1);
    let url = etcd.url("t").with_user("llmlb", "secret");
    let listing = Cluster::connect(&url)
        .unwrap()
        .servers(None, &Interrupt::new());
    assert!(listing.unwrap().servers.is_empty());
}
