#!/bin/sh
# Builds a Kubernetes control plane for the tests, once, from Go modules: etcd, kube-apiserver, kube-controller-manager,
# kube-scheduler, kubectl and kwok. Prints the folder that holds them, which is outside the tree and named after what the
# modules say, so that another version never meets an old build:
#
#   ${XDG_CACHE_HOME:-~/.cache}/yunhe/kube-<hash of go.mod and go.sum>
#
# One sentence on standard error and exit 3 when they cannot be had on this machine. It does nothing when they are there
# already. About 700 CPU seconds and 2 GB of Go's build cache.

set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
HASH=$(cd "$HERE" && cat etcd/go.mod etcd/go.sum kubernetes/go.mod kubernetes/go.sum kwok/go.mod kwok/go.sum |
    sha256sum | cut -c 1-12)
PLACE=${XDG_CACHE_HOME:-$HOME/.cache}/yunhe/kube-$HASH

cannot() {
    echo "$1" >&2
    exit 3
}

# One builds and others wait: tests run in several processes, and each asks for the programs.
mkdir -p "${PLACE%/*}"
if command -v flock >/dev/null; then
    exec 9>"$PLACE.lock"
    flock 9
fi

# Written last.
if [ -e "$PLACE/complete" ]; then
    echo "$PLACE"
    exit 0
fi
command -v go >/dev/null || cannot "Kubernetes' control plane is built with Go, which is not installed"

mkdir -p "$PLACE"
KUBERNETES=$(cd "$HERE/kubernetes" && awk '$1 == "k8s.io/kubernetes" { print $2 } $2 == "k8s.io/kubernetes" { print $3 }' go.mod | head -n 1)
MINOR=${KUBERNETES#v*.}
VERSION=k8s.io/component-base/version
FLAGS="-s -w -X $VERSION.gitVersion=$KUBERNETES -X $VERSION.gitMajor=1 -X $VERSION.gitMinor=${MINOR%%.*}"

build() { # MODULE PROGRAM PACKAGE
    (cd "$HERE/$1" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false nice go build -trimpath -mod=readonly -ldflags "$FLAGS" \
        -o "$PLACE/$2.new" "$3" && mv "$PLACE/$2.new" "$PLACE/$2") >"$PLACE/$2.log" 2>&1 ||
        cannot "$2 could not be built: $(tail -n 1 "$PLACE/$2.log")"
}

build etcd etcd go.etcd.io/etcd/server/v3
build kubernetes kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kubernetes kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build kubernetes kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
build kubernetes kubectl k8s.io/kubernetes/cmd/kubectl
build kwok kwok sigs.k8s.io/kwok/cmd/kwok
# kwok built as a module has no stages of its own: how its nodes and pods come alive is given by these files.
mkdir -p "$PLACE/stages"
STAGES=$(cd "$HERE/kwok" && go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
for file in node/fast/node-initialize.yaml node/heartbeat-with-lease/node-heartbeat-with-lease.yaml \
    pod/fast/pod-ready.yaml pod/fast/pod-complete.yaml pod/fast/pod-delete.yaml; do
    [ -e "$STAGES/$file" ] || cannot "kwok's module has no $file"
    cp "$STAGES/$file" "$PLACE/stages/"
done
chmod -R u+w "$PLACE/stages"
touch "$PLACE/complete"
echo "$PLACE"
