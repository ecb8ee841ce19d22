# Sourced by the installers of judges that are Debian's packages. `packages NAME…` installs them as root; a package's
# own service, which nobody asked for, is kept from starting.

cannot() {
    echo "$1" >&2
    exit 3
}

packages() {
    [ "$(id -u)" = 0 ] || cannot "$* cannot be installed: that needs root"
    command -v apt-get >/dev/null || cannot "$* cannot be installed: there is no apt-get here"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends "$@" >&2 2>/dev/null ||
        { apt-get update >&2 2>/dev/null && apt-get install -y --no-install-recommends "$@" >&2; } ||
        cannot "Debian's packages $* cannot be had here"
}
