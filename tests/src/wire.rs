//! A client that sees every byte, and the messages it reads and writes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use crate::PATIENCE;

/// A message's head and body.
#[derive(Debug, Clone)]
pub struct Message {
    pub first_line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The `code` of an OpenAI error, with its form checked.
    pub fn error_code(&self) -> String {
        let error = &self.json()["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        assert!(error.get("param").is_some(), "{error}");
        error["code"].as_str().unwrap().to_owned()
    }
}

/// One end of a connection.
pub struct Wire {
    reader: BufReader<TcpStream>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    /// To send and to receive at the same time.
    pub fn split(self) -> (Self, Self) {
        let other = self.reader.get_ref().try_clone().unwrap();
        (Self::new(other), self)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    pub fn finish_sending(&mut self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Write);
    }

    /// The head of a message, or none at the connection's end.
    pub fn head(&mut self) -> Option<Message> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return None,
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return None,
                result => result.unwrap(),
            };
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        let first_line = lines.next().unwrap();
        let split = |line: String| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        };
        Some(Message {
            first_line,
            headers: lines.map(split).collect(),
            body: Vec::new(),
        })
    }

    /// The next chunk of a chunked body: empty at its proper end, none at an improper one.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        match self.reader.read_line(&mut size) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut data = vec![0; size + 2];
        self.reader.read_exact(&mut data).ok()?;
        data.truncate(size);
        Some(data)
    }

    /// A whole message, or none if it breaks off.
    pub fn message(&mut self) -> Option<Message> {
        let head = self.head()?;
        self.finish(head)
    }

    pub(crate) fn finish(&mut self, mut message: Message) -> Option<Message> {
        if let Some(length) = message.header("content-length") {
            message.body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut message.body).ok()?;
        } else if message.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                message.body.extend(chunk);
            }
        }
        Some(message)
    }

    /// A request; of one that says `X-Raw`, the handler reads the body.
    pub(crate) fn request(&mut self) -> Option<Message> {
        let head = self.head()?;
        if head.header("x-raw").is_some() {
            return Some(head);
        }
        self.finish(head)
    }

    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Message {
        self.send(request(method, path, headers, body));
        self.message().expect("an answer")
    }

    pub fn read_exact(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.reader.read_exact(&mut data).unwrap();
        data
    }

    /// Whether the other end has gone; waits for that, or a byte.
    pub fn is_at_end(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: llm.test\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

pub const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

pub fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

pub fn chat(model: &str) -> Vec<u8> {
    format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"model":"{model}"}}"#).into_bytes()
}
