#!/bin/sh
# Installs tgtd, a SCSI target with persistent reservations, and libiscsi, which reaches it. Prints the path of tgtd, or
# one sentence on standard error and exits 3 when it cannot be had here. Does nothing when both are there.
set -eu
. "$(dirname "$0")/debian.sh"

there() {
    command -v tgtd >/dev/null && command -v tgtadm >/dev/null && ldconfig -p | grep -q 'libiscsi\.so\.'
}

there || packages tgt libiscsi7
there || cannot "tgt and libiscsi7 are installed, and tgtd or libiscsi is still not found"
command -v tgtd
