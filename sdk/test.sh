#!/bin/sh
# Builds the SDK, and runs its tests and its clients against a ring in Python. `--header`: writes the C header anew.
# PYTHON: an interpreter with the project's dependencies (.venv/bin/python). CARGO_TARGET_DIR: where cargo builds.
set -eu
cd "$(dirname "$0")"
if ! command -v cargo >/dev/null; then
    echo "skipped: no cargo here; the edge SDK needs Rust 1.79 or newer (https://rustup.rs)"
    exit 0
fi
# By the checkout: cargo goes by the age of files, and takes those of an older checkout for what it has built of another.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${TMPDIR:-/tmp}/yunhe-sdk-target-$(pwd | cksum | cut -d ' ' -f 1)}
export CARGO_TARGET_DIR
if [ "${1:-}" = --header ]; then
    YUNHE_WRITE_HEADER=1 exec cargo test --locked --release --test header
fi
cargo fmt --check
cargo clippy --locked --release --all-targets -- -D warnings
cargo test --locked --release
cargo build --locked --release --lib --examples
"${PYTHON:-../.venv/bin/python}" check.py "$CARGO_TARGET_DIR/release"
