#!/bin/sh
# Builds the Pulumi CLI from its Go modules, once, and puts beside it what its tests need: no package registry carries it as
# a program. Prints the folder to put on PATH, or one sentence on standard error and exits 3 when it cannot be had here.
#
#   ${XDG_CACHE_HOME:-~/.cache}/yunhe/pulumi-<version>/bin
#
# It holds `pulumi`, the SDK's own `pulumi-resource-pulumi-python` (dynamic providers) and `pulumi-language-python-exec`.
# `pulumi-language-python` is not among the modules served: the one here is a stand-in for tests, see language_host.py.
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
VERSION=$(awk '$1 == "github.com/pulumi/pulumi/pkg/v3" { print substr($2, 2); exit }' "$HERE/go.mod")
PLACE=${XDG_CACHE_HOME:-$HOME/.cache}/yunhe/pulumi-$VERSION

cannot() {
    echo "$1" >&2
    exit 3
}

# One builds and others wait.
mkdir -p "${PLACE%/*}"
if command -v flock >/dev/null; then
    exec 9>"$PLACE.lock"
    flock 9
fi

if [ ! -x "$PLACE/bin/pulumi" ]; then
    command -v go >/dev/null || cannot "the Pulumi CLI is built from Go modules, and Go is not installed"
    WORK=$PLACE.new
    rm -rf "$WORK"
    mkdir -p "$WORK/bin"
    cd "$HERE"
    FLAG="-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=$VERSION"
    nice go build -mod=readonly -trimpath -ldflags "-s -w $FLAG" -o "$WORK/bin/pulumi" \
        github.com/pulumi/pulumi/pkg/v3/cmd/pulumi >&2 || cannot "the Pulumi CLI could not be built: see above"
    SDK=$(go list -mod=readonly -m -f '{{.Dir}}' github.com/pulumi/pulumi/sdk/v3)
    install -m 755 "$SDK/python/dist/pulumi-resource-pulumi-python" "$WORK/bin/"
    install -m 755 "$SDK/python/cmd/pulumi-language-python-exec" "$WORK/bin/"
    rm -rf "$PLACE"
    mv "$WORK" "$PLACE"
fi
# Not part of what is kept: it follows the tree.
install -m 755 "$HERE/pulumi-language-python" "$PLACE/bin/"
install -m 644 "$HERE/language_host.py" "$PLACE/bin/"
echo "$PLACE/bin"
