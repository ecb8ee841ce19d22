#!/bin/sh
# Installs BIND, a DNS server with dynamic updates. Prints the path of named, or one sentence on standard error and exits
# 3 when it cannot be had here. Does nothing when it is there.
set -eu
. "$(dirname "$0")/debian.sh"
PATH=$PATH:/usr/sbin:/usr/local/sbin

command -v named >/dev/null || packages bind9
command -v named || cannot "bind9 is installed, and named is still not found"
