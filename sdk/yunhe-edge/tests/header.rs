//! The committed header is the one that cbindgen makes of this crate. `YUNHE_WRITE_HEADER=1` writes it.

use std::path::Path;

#[test]
fn the_committed_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new().with_src(root.join("src/ffi.rs")).with_config(config).generate().unwrap().write(&mut made);
    let path = root.join("../include/yunhe_edge.h");
    if std::env::var_os("YUNHE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed.as_bytes() == made, "sdk/include/yunhe_edge.h is old: run sdk/test.sh --header");
}
