//! `include/llmlb_lock.h` is what cbindgen makes of the source.

use std::path::Path;
use std::{env, fs};

/// What C89 knows: no comments to the end of a line, no comma behind the last enumerator. Comments
/// are plain ones, in one line where that fits.
fn tidy(header: &str) -> String {
    let header = header.replace("/**\n", "/*\n").replace(",\n}", "\n}");
    let lines: Vec<&str> = header.lines().collect();
    let mut tidied = String::new();
    let mut rest = &lines[..];
    while let Some((&line, mut tail)) = rest.split_first() {
        let line = match (line.split_once("//"), tail) {
            (Some((code, comment)), _) if code.starts_with(['#', '}']) => {
                format!("{} /*{comment} */", code.trim_end())
            }
            (_, [text, end, behind @ ..])
                if line.trim_start() == "/*"
                    && end.trim_start() == "*/"
                    && text.len() + "/*  */".len() <= 100 =>
            {
                tail = behind;
                format!("{line}{} */", text.trim_start().trim_start_matches('*'))
            }
            _ => line.to_owned(),
        };
        tidied += &line;
        tidied.push('\n');
        rest = tail;
    }
    tidied
}

/// What is exported, in the header's order.
const MODULES: [&str; 8] = [
    "version",
    "result",
    "error",
    "types",
    "lock",
    "server",
    "stop_event",
    "log",
];

#[test]
fn nothing_exported_is_left_out() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if text.contains("#[unsafe(no_mangle)]") || text.contains("#[repr(C)]") {
            let module = path.file_stem().unwrap().to_str().unwrap();
            assert!(MODULES.contains(&module), "{module}");
        }
    }
}

#[test]
fn the_committed_header_is_current() {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = ffi.join("../include/llmlb_lock.h");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    // File by file: reading the whole crate would ask cargo for its metadata.
    let mut exported = 0;
    for module in MODULES {
        let source = ffi.join(format!("src/{module}.rs"));
        let text = fs::read_to_string(&source).unwrap();
        exported += text.matches("#[unsafe(no_mangle)]").count();
        builder = builder.with_src(source);
    }
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    let generated = tidy(&String::from_utf8(generated).unwrap());
    if env::var_os("LLMLB_WRITE_HEADER").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "include/llmlb_lock.h differs from the Rust source; mend it with: make header"
    );
    let mut described = 0;
    for paragraph in committed.split("\n\n") {
        let mut code = paragraph
            .lines()
            .filter(|line| !line.starts_with(['/', '#', ' ']));
        if code.any(|line| line.contains('(') && !line.starts_with("typedef")) {
            assert!(
                paragraph.contains("thread"),
                "which threads may call it?\n{paragraph}"
            );
            described += 1;
        }
    }
    assert_eq!(described, exported);
    for (name, value) in [
        ("LLMLB_LOCK_DIR_ENV", llmlb_lock_core::LOCK_DIR_ENV),
        ("LLMLB_GUARDED_PORT_ENV", llmlb_lock_core::GUARDED_PORT_ENV),
    ] {
        assert!(
            committed.contains(&format!("#define {name} \"{value}\"\n")),
            "{name}"
        );
    }
}
