#!/bin/sh
# The first process of the kernel that `kernel.sh` boots: mounts the machine's files and goes on in `kernel_guest.sh`.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in /mod/*; do $B insmod "$module"; done
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host || echo "no files"
for folder in dev proc sys; do $B mount --bind /$folder /host/$folder; done
# Writable, and the same folder for the kernel's own threads, which do not see what is mounted below /host.
$B mount -t tmpfs tmp /run
$B mount --bind /run /host/run
$B mkdir -p /run/t/db/pr /run/t/db/alua
$B ifconfig lo 127.0.0.1 up
{ read -r kind; read -r root; read -r place; } </what
$B chroot /host /bin/sh "$root/tools/judges/kernel_guest.sh" "$kind" "$root" "$place"
$B poweroff -f
