#!/bin/sh
# Installs kcat, a command-line client over librdkafka. Prints its path, or one sentence on standard error and exits 3
# when it cannot be had here. Does nothing when it is there.
set -eu
. "$(dirname "$0")/debian.sh"

command -v kcat >/dev/null || packages kcat
command -v kcat || cannot "kcat is installed, and still not found"
