#!/bin/sh
# Installs azurite, an emulator of Azure Storage, by package-lock.json, which holds the checksum of each package and names
# no registry; packages' own install scripts are not run. Prints the path of its Blob service's program, for Node.
. "$(dirname "$0")/place.sh"

MAIN=node_modules/azurite/dist/src/blob/main.js
if [ ! -f "$PLACE/$MAIN" ]; then
    command -v npm >/dev/null || cannot "npm is not installed"
    BUILDING=$PLACE.building-$$
    mkdir -p "$BUILDING"
    cp "$(dirname "$0")/package.json" "$(dirname "$0")/$SUM" "$BUILDING"
    (cd "$BUILDING" && nice npm ci --ignore-scripts --no-audit --no-fund --silent >&2) ||
        cannot "azurite $VERSION cannot be had from the npm registry"
    # Put in place whole: an install that is cut short leaves nothing that looks finished.
    mv "$BUILDING" "$PLACE" 2>/dev/null || rm -rf "$BUILDING"
fi
echo "$PLACE/$MAIN"
