# Sourced by the judges' installers. Sets VERSION, SUM and PLACE, the judge's folder in the cache, which is outside the
# tree and named after what the lock says, so that another version never meets an old build:
#
#   ${XDG_CACHE_HOME:-~/.cache}/yunhe/judges/<name>-<version>
#
# An installer prints the path of the judge's program on standard output, or one sentence on standard error and exits 3
# when the judge cannot be had on this machine. It does nothing when the program is there already.

set -eu
NAME=$(basename "$0" .sh)
LOCK=$(dirname "$0")/versions.lock
VERSION=$(awk -v name="$NAME" '$1 == name { print $2 }' "$LOCK")
SUM=$(awk -v name="$NAME" '$1 == name { print $3 }' "$LOCK")
PLACE=${XDG_CACHE_HOME:-$HOME/.cache}/yunhe/judges/$NAME-$VERSION

cannot() {
    echo "$1" >&2
    exit 3
}

# One installs and others wait: tests run in several processes, and each asks for its judge.
mkdir -p "${PLACE%/*}"
if command -v flock >/dev/null; then
    exec 9>"$PLACE.lock"
    flock 9
fi
