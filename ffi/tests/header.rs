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
    for module in ["version", "error", "types", "lock", "server", "log"] {
        builder = builder.with_src(ffi.join(format!("src/{module}.rs")));
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
