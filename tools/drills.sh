#!/bin/sh
# Every drill in every WAL mode: tools/drills.sh RUNS (seeds each). The clouds have nothing in common but the machine, so
# they go on beside each other, each with a log of its own, .yunhe-drills-CLOUD.jsonl. A log that is there is gone on
# with. Interrupted, each puts right what it has broken, and the next call goes on.
set -u
yunhe=${YUNHE:-.venv/bin/yunhe}
state=.yunhe-drills
clouds="gcp-usc1 aws-use1 plant-7"

"$yunhe" up examples/wal-modes.yaml --state-dir $state || exit
running=
for cloud in $clouds; do
    # Its total is part of the report below; its progress is shown.
    "$yunhe" drill all --state-dir $state --cloud "$cloud" --runs "$1" --resume --log "$state-$cloud.jsonl" >/dev/null &
    running="$running $!"
done
# A shell's background processes do not hear Ctrl-C.
trap 'kill $running' INT TERM
for one in $running; do
    wait "$one" # which a signal ends
    wait "$one"
done
"$yunhe" down --purge --state-dir $state
# shellcheck disable=SC2086
"$yunhe" drill report $(for cloud in $clouds; do echo "$state-$cloud.jsonl"; done)
