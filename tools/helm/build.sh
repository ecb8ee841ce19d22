#!/bin/sh
# Builds helm for the tests, once, from its Go module. Prints the program's path, which is outside the tree and named
# after what the module says:
#
#   ${XDG_CACHE_HOME:-~/.cache}/yunhe/helm-<hash of go.mod and go.sum>/helm
#
# One sentence on standard error and exit 3 when it cannot be had on this machine; nothing to do when it is there.

set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
PLACE=${XDG_CACHE_HOME:-$HOME/.cache}/yunhe/helm-$(cat "$HERE/go.mod" "$HERE/go.sum" | sha256sum | cut -c 1-12)
mkdir -p "$PLACE"
if command -v flock >/dev/null; then
    exec 9>"$PLACE.lock"
    flock 9
fi
if [ ! -x "$PLACE/helm" ]; then
    command -v go >/dev/null || { echo "helm is built with Go, which is not installed" >&2; exit 3; }
    (cd "$HERE" && CGO_ENABLED=0 nice go build -trimpath -mod=readonly -buildvcs=false -ldflags "-s -w" -o "$PLACE/helm.new" \
        helm.sh/helm/v3/cmd/helm) >"$PLACE/log" 2>&1 ||
        { echo "helm could not be built: $(tail -n 1 "$PLACE/log")" >&2; exit 3; }
    mv "$PLACE/helm.new" "$PLACE/helm"
fi
echo "$PLACE/helm"
