//! Bodies that are on their way.

use std::sync::mpsc;
use std::thread;

use crate::support::{
    Backend, Gateway, Next, Wire, answer, chat, often, once, request, wait_until,
};

/// What kinds of bodies there are: one that names its model, forms, files, and what is not known.
const KINDS: [&str; 5] = [
    "Content-Type: application/json\r\n",
    "Content-Type: multipart/form-data; boundary=b\r\n",
    "Content-Type: text/plain\r\n",
    "Content-Type: application/octet-stream\r\n",
    "Content-Type: application/json\r\nContent-Encoding: br\r\n",
];

#[test]
fn who_sends_slowly_keeps_nobody_out() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], often().max_requests(4));
    let begin = |path: &str, kind: &str| {
        let mut client = gateway.connect();
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\n{kind}Content-Length: 100\r\n\r\nx"
        ));
        client
    };
    let mut slow: Vec<_> = ["/v1/x", "/v1/files"]
        .iter()
        .flat_map(|path| KINDS.iter().map(move |kind| (path, kind)))
        .flat_map(|(path, kind)| (0..5).map(move |_| (path, kind)))
        .map(|(path, kind)| begin(path, kind))
        .collect();
    for _ in 0..10 {
        for client in &mut slow {
            client.send(" ");
        }
        assert_eq!(gateway.chat("m").body, b"fine");
        // In two pieces, and so on its way for a while itself.
        let mut client = gateway.connect();
        let whole = request("POST", "/v1/x", "", &chat("m"));
        let (first, second) = whole.split_at(whole.len() - 5);
        client.send(first);
        client.send(second);
        assert_eq!(client.message().unwrap().body, b"fine");
    }
    assert_eq!(backend.requests().len(), 20);
    // In the end, they are served like all others.
    for mut client in slow {
        client.send("x".repeat(89));
        assert_eq!(client.message().unwrap().body, b"fine");
    }
}

#[test]
fn a_file_that_is_all_here_goes_to_another_when_the_first_one_has_enough() {
    let full = Backend::start(&["m"], |_, wire| {
        wire.send(answer("429 Too Many Requests", "", "full"));
        Next::Read
    });
    let other = Backend::named("other", &["m"]);
    let gateway = Gateway::with(&[full.url(), other.url()], once());
    for _ in 0..2 {
        let file = vec![b'x'; 3 << 20];
        let answer = gateway.connect().ask("POST", "/v1/files", "", &file);
        assert_eq!(answer.body, b"other");
    }
    assert_eq!(full.requests().len(), 1);
    assert!(other.requests().iter().all(|r| r.body.len() == 3 << 20));
}

#[test]
fn who_stops_sending_leaves_its_place_to_others() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], often().max_requests(1));
    let mut client = gateway.connect();
    client.send("POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n");
    client.send(vec![b'x'; 5 << 20]);
    wait_until("it to take the only slot", || {
        (gateway.chat("m").status() == 503).then_some(())
    });
    wait_until("it to be left", || {
        (gateway.chat("m").status() == 200).then_some(())
    });
    let answer = client.message().unwrap();
    assert_eq!(
        (answer.status(), &*answer.error_code()),
        (408, "request_timeout")
    );
}

#[test]
fn of_bodies_on_their_way_a_slow_one_makes_room_for_the_next() {
    // At least so many may be.
    const MOST: usize = 64;
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], often().max_requests(1));
    let begin = || {
        let mut client = gateway.connect();
        client.send("POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{");
        client
    };
    let (told, answers) = mpsc::channel();
    for mut client in (0..MOST).map(|_| begin()) {
        let told = told.clone();
        thread::spawn(move || told.send(client.message()));
    }
    let mut more = Vec::new();
    let answer = wait_until("one of them to make room", || {
        more.push(begin());
        // One whose body is here needs none.
        assert_eq!(gateway.chat("m").body, b"fine");
        answers.try_recv().ok()
    });
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status(), &*answer.error_code()),
        (408, "request_timeout")
    );
    assert_eq!(answer.header("connection"), Some("close"));
    // Who has just begun makes none.
    let refused = wait_until("one to find no room", || {
        let mut crowd: Vec<_> = (0..=MOST).map(|_| begin()).collect();
        assert_eq!(gateway.chat("m").body, b"fine");
        for client in &mut crowd {
            client.finish_sending();
        }
        let mut answers = crowd.iter_mut().filter_map(Wire::message);
        answers.find(|answer| answer.status() == 503)
    });
    assert_eq!(refused.error_code(), "overloaded");
    assert!(refused.header("retry-after").is_some());
}

/// The first piece must not be looked through again for each that follows: that takes minutes.
#[test]
fn blanks_in_single_bytes_are_no_burden() {
    const FIRST: usize = 512 << 10;
    const SINGLE: usize = 100 << 10;
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::before(&[backend.url()]);
    let mut client = gateway.connect();
    // From then on, what comes is read in big pieces.
    client.ask("POST", "/v1/x", "", &vec![b'x'; 4 << 20]);
    let body = String::from_utf8(chat("m")).unwrap();
    client.send(format!(
        "POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
         {FIRST:x}\r\n{}\r\n{}{:x}\r\n{body}\r\n0\r\n\r\n",
        " ".repeat(FIRST),
        "1\r\n \r\n".repeat(SINGLE),
        body.len(),
    ));
    assert_eq!(client.message().unwrap().body, b"fine");
    let seen = backend.requests().pop().unwrap();
    assert_eq!(seen.body.len(), FIRST + SINGLE + body.len());
}

#[test]
fn what_is_no_body_is_told_so_also_behind_what_is_kept() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    for (kind, len) in [
        ("application/json", 4),
        ("text/plain", 4),
        ("text/plain", 5 << 20),
    ] {
        let mut client = gateway.connect();
        client.send(format!(
            "POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{len:x}\r\n{}\r\nZZ\r\n",
            " ".repeat(len)
        ));
        let answer = client.message().unwrap();
        assert_eq!(
            (answer.status(), &*answer.error_code()),
            (400, "invalid_body"),
            "{kind}, {len}"
        );
    }
    assert_eq!(gateway.chat("m").body, b"fine");
}
