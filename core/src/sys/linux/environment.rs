//! What a process was told at its start. Apart, because what `/proc/PID/environ` shows has more
//! meanings than there and not there.

use std::fs;

/// A variable in the environment a process was started with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Variable {
    Is(String),
    /// The environment is there, and does not have it.
    Unset,
    /// There is none at all, as of `env -i`, of a zombie, of the kernel's own threads, and of any
    /// process for the instant in which it becomes another program.
    Empty,
    /// It may not be read, or has been overwritten, as by programs that set their title.
    Unknown,
}

pub(super) fn variable(pid: u32, name: &str) -> Variable {
    match look_up(&format!("/proc/{pid}/environ"), name) {
        // That of a main thread which has ended is seen through the others.
        Variable::Empty => threads(pid)
            .into_iter()
            .filter(|&thread| thread != pid)
            .map(|thread| look_up(&format!("/proc/{pid}/task/{thread}/environ"), name))
            .find(|found| *found != Variable::Empty)
            .unwrap_or(Variable::Empty),
        found => found,
    }
}

pub(super) fn threads(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(number).collect()
}

fn look_up(path: &str, name: &str) -> Variable {
    match fs::read(path) {
        Ok(bytes) => parse(&bytes, name),
        Err(_) => Variable::Unknown,
    }
}

fn parse(bytes: &[u8], name: &str) -> Variable {
    let Some(entries) = bytes.strip_suffix(b"\0") else {
        return match bytes {
            [] => Variable::Empty,
            _ => Variable::Unknown,
        };
    };
    let mut whole = true;
    for entry in entries.split(|&b| b == 0) {
        let Some(at) = entry.iter().position(|&b| b == b'=') else {
            whole = false;
            continue;
        };
        if &entry[..at] == name.as_bytes() {
            return match std::str::from_utf8(&entry[at + 1..]) {
                Ok(value) => Variable::Is(value.to_owned()),
                Err(_) => Variable::Unset,
            };
        }
    }
    if whole {
        Variable::Unset
    } else {
        Variable::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overwritten_environment_is_not_one_without_the_variable() {
        let is = |bytes: &[u8]| parse(bytes, "ID");
        assert_eq!(is(b"A=b\0ID=1=2\0"), Variable::Is("1=2".to_owned()));
        assert_eq!(is(b"A=b\0XID=1\0"), Variable::Unset);
        assert_eq!(is(b""), Variable::Empty);
        assert_eq!(is(b"title --port=1\0\0\0\0"), Variable::Unknown);
        assert_eq!(is(b"title, and blanks    "), Variable::Unknown);
    }
}
