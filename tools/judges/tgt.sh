#!/bin/sh
# Installs tgtd, a SCSI target with persistent reservations, and libiscsi, which reaches it: Debian's packages, as root.
# Prints the path of tgtd, or one sentence on standard error and exits 3 when it cannot be had here. Does nothing when
# both are there. The package would start a target of its own on port 3260, which nobody asked for: it is kept from it.
set -eu

cannot() {
    echo "$1" >&2
    exit 3
}

there() {
    command -v tgtd >/dev/null && command -v tgtadm >/dev/null && ldconfig -p | grep -q 'libiscsi\.so\.'
}

if ! there; then
    [ "$(id -u)" = 0 ] || cannot "tgt and libiscsi7 are not installed, and installing them needs root"
    command -v apt-get >/dev/null || cannot "tgt and libiscsi7 are not installed, and there is no apt-get here"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends tgt libiscsi7 >&2 2>/dev/null ||
        { apt-get update >&2 2>/dev/null && apt-get install -y --no-install-recommends tgt libiscsi7 >&2; } ||
        cannot "Debian's packages tgt and libiscsi7 cannot be had here"
    there || cannot "tgt and libiscsi7 are installed, and tgtd or libiscsi is still not found"
fi
command -v tgtd
