//! `include/llmlb_lock.h` is what cbindgen makes of the source.

use std::path::Path;
use std::{env, fs};

#[test]
fn the_committed_header_is_current() {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = ffi.join("../include/llmlb_lock.h");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    // File by file: reading the whole crate would ask cargo for its metadata.
    let mut exported = 0;
    for module in [
        "version", "result", "error", "types", "lock", "server", "log",
    ] {
        let source = ffi.join(format!("src/{module}.rs"));
        let text = fs::read_to_string(&source).unwrap();
        exported += text.matches("#[unsafe(no_mangle)]").count();
        builder = builder.with_src(source);
    }
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
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
