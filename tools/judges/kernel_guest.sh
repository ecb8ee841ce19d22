#!/bin/sh
# Inside the kernel that `kernel.sh` boots: makes six nodes of one unit, and runs the fencing suite over them.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/t
KIND=$1 ROOT=$2 PLACE=$3
cd "$ROOT" || exit 1
export PYTHONPATH="$ROOT" PYTHONDONTWRITEBYTECODE=1
load() { modprobe -d "$PLACE" "$@"; }

scsi() {
    load configfs
    mount -t configfs none /sys/kernel/config 2>/dev/null
    load target_core_mod
    echo /run/t/db >/sys/kernel/config/target/dbroot # where it keeps reservations over its restart (APTPL)
    load target_core_file
    load tcm_loop
    load sd_mod
    target=/sys/kernel/config/target
    truncate -s 1048576 /run/t/unit
    mkdir -p $target/core/fileio_0/unit
    echo "fd_dev_name=/run/t/unit,fd_dev_size=1048576" >$target/core/fileio_0/unit/control
    echo unit1 >$target/core/fileio_0/unit/wwn/vpd_unit_serial
    echo 1 >$target/core/fileio_0/unit/enable
    for n in 1 2 3 4 5 6; do
        port=$target/loopback/naa.600140500000000$n/tpgt_1
        mkdir -p $port
        echo naa.600140511111111$n >$port/nexus
        mkdir -p $port/lun/lun_0
        ln -s $target/core/fileio_0/unit $port/lun/lun_0/unit
    done
    for adapter in /sys/class/scsi_host/host*; do echo "- - -" >"$adapter/scan"; done
    export YUNHE_FENCED_NODES_ABORT=no
    NODES="sda sdb sdc sdd sde sdf"
}

nvme() {
    .venv/bin/python -m tests.conformance.nvme_target 4420 &
    load nvme_core multipath=N # or the six would be six paths of one host
    load nvme-tcp
    for n in 1 2 3 4 5 6; do
        where="transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn=nqn.2026-11.dev.yunhe.test:volumes"
        who="hostnqn=nqn.2026-11.dev.yunhe.test:host$n,hostid=0000000$n-0000-4000-8000-00000000000$n"
        for attempt in $(seq 60); do
            echo "$where,$who,nr_io_queues=1,keep_alive_tmo=0" 2>/dev/null >/dev/nvme-fabrics && break
            sleep 1
        done
    done
    NODES="nvme0n1 nvme1n1 nvme2n1 nvme3n1 nvme4n1 nvme5n1"
}

"$KIND"
YUNHE_FENCED_NODES=
for node in $NODES; do
    for attempt in $(seq 60); do
        [ -b "/dev/$node" ] && break
        sleep 1
    done
    YUNHE_FENCED_NODES="$YUNHE_FENCED_NODES /dev/$node"
done
export YUNHE_FENCED_NODES
echo
echo "judged by Linux $(uname -r), $KIND:$YUNHE_FENCED_NODES"
.venv/bin/python -m pytest tests/conformance/test_volumes.py -k nodes -rxXf --color=no --basetemp=/run/t/pytest
echo "verdict $?"
