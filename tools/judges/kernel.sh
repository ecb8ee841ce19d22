#!/bin/sh
# Judges the host's block devices by a real kernel that has reservations, where this machine's has none: boots Debian's
# kernel in qemu, with this machine's files read-only, and runs the fencing suite (`tests/conformance/test_volumes.py`)
# over the nodes that it shows.
#
#   tools/judges/kernel.sh scsi   Linux's own SCSI target (LIO, tcm_loop): six initiators at one unit, sd, SG_IO
#   tools/judges/kernel.sh nvme   six hosts at `tests/conformance/nvme_target.py` by NVMe over TCP
#
# KERNEL: the Debian package whose newest kernel is booted, linux-image-amd64 by default; linux-image-6.12-amd64 is
# another. About four minutes each on two cores, since qemu translates; a few hundred MB below the cache, for packages.
# LIO hangs in PREEMPT AND ABORT (seen in 6.1 and 6.12, with sg_persist too): it is not asked for over scsi.
set -eu

cannot() {
    echo "$1" >&2
    exit 3
}

case ${1:-} in
scsi | nvme) KIND=$1 ;;
*) echo "usage: $0 scsi|nvme" >&2; exit 2 ;;
esac
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
META=${KERNEL:-linux-image-amd64}
[ "$(id -u)" = 0 ] || cannot "booting a kernel over this machine's files needs root, to read them all"
[ "$(uname -m)" = x86_64 ] || cannot "the kernel is for x86-64, and this machine is not"
command -v apt-get >/dev/null || cannot "there is no apt-get here"
if ! command -v qemu-system-x86_64 >/dev/null || ! command -v depmod >/dev/null || ! command -v cpio >/dev/null ||
    [ ! -x /bin/busybox ]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        qemu-system-x86 busybox-static kmod cpio xz-utils >&2 || cannot "qemu, busybox, kmod and cpio cannot be had here"
fi

PACKAGE=$(apt-cache depends "$META" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
[ -n "$PACKAGE" ] || cannot "there is no kernel package $META here"
VERSION=${PACKAGE#linux-image-}
PLACE=${XDG_CACHE_HOME:-$HOME/.cache}/yunhe/judges/$PACKAGE
MODULES=$PLACE/lib/modules/$VERSION
if [ ! -e "$PLACE/ready" ]; then
    rm -rf "$PLACE"
    mkdir -p "$PLACE"
    (cd "$PLACE" && apt-get download "$PACKAGE" >&2 && dpkg -x ./*.deb . && rm ./*.deb) ||
        cannot "the kernel package $PACKAGE cannot be had here"
    depmod -b "$PLACE" "$VERSION"
    touch "$PLACE/ready"
fi

# The first files: a shell, and the modules that mount this machine's.
BOOT=$(mktemp -d)
trap 'rm -rf "$BOOT"' EXIT
mkdir -p "$BOOT/files/bin" "$BOOT/files/mod" "$BOOT/files/proc" "$BOOT/files/sys" "$BOOT/files/dev" \
    "$BOOT/files/run" "$BOOT/files/host"
cp /bin/busybox "$BOOT/files/bin/busybox"
ln -s busybox "$BOOT/files/bin/sh"
cp "$ROOT/tools/judges/kernel_init.sh" "$BOOT/files/init"
printf '%s\n' "$KIND" "$ROOT" "$PLACE" >"$BOOT/files/what"
count=10
for name in virtio_pci 9pnet_virtio 9p; do
    modprobe -d "$PLACE" -S "$VERSION" --show-depends "$name" | awk '$1 == "insmod" { print $2 }' |
        while read -r module; do echo "$module"; done
done | awk '!seen[$0]++' >"$BOOT/modules"
while read -r module; do
    count=$((count + 1))
    case $module in
    *.xz) xz -dc "$module" >"$BOOT/files/mod/$count.ko" ;;
    *) cp "$module" "$BOOT/files/mod/$count.ko" ;;
    esac
done <"$BOOT/modules"
(cd "$BOOT/files" && find . | cpio -o -H newc --quiet | gzip -1 >"$BOOT/first.gz")

LOG=$BOOT/log
timeout 1500 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 2048 -smp 2 -nographic -no-reboot -nic none \
    -kernel "$PLACE/boot/vmlinuz-$VERSION" -initrd "$BOOT/first.gz" \
    -append "console=ttyS0 quiet panic=-1 loglevel=3" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null >"$LOG" 2>&1 || true
tr -d '\r' <"$LOG" | sed -n '/^judged by /,$p'
# The guest's last word is the suite's.
grep -q '^verdict 0' "$LOG"
