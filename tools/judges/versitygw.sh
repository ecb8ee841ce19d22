#!/bin/sh
# Builds versitygw, an S3 gateway over a folder, from its Go module: about three minutes the first time.
. "$(dirname "$0")/place.sh"

if [ ! -x "$PLACE/versitygw" ]; then
    command -v go >/dev/null || cannot "Go is not installed"
    mkdir -p "$PLACE"
    got=$(go mod download -json "github.com/versity/versitygw@$VERSION" 2>/dev/null | sed -n 's/^.*"Sum": "\(.*\)",*$/\1/p') ||
        cannot "the Go module of versitygw $VERSION cannot be had"
    [ -n "$got" ] || cannot "the Go module of versitygw $VERSION cannot be had"
    [ "$got" = "$SUM" ] || cannot "versitygw $VERSION has the checksum $got where the lock says $SUM"
    # Built beside its place and renamed into it: a build that is cut short leaves nothing that looks finished.
    GOBIN=$PLACE/building nice go install "github.com/versity/versitygw/cmd/versitygw@$VERSION" >&2 ||
        cannot "versitygw $VERSION does not build here"
    mv "$PLACE/building/versitygw" "$PLACE/versitygw"
    rmdir "$PLACE/building"
fi
echo "$PLACE/versitygw"
