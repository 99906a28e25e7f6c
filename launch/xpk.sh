#!/usr/bin/env bash
# Trains on one TPU slice of a GKE cluster that xpk (https://github.com/AI-Hypercomputer/xpk) made.
#
#   launch/xpk.sh [--dry-run] --name=NAME --cluster=CLUSTER --type=v5litepod-32 --image=IMAGE \
#     [--zone=ZONE] [--project=PROJECT] [--restarts=100] -- --config=FILE --workdir=gs://DIR [...]
#
# such as, with an image for each of 32 chips,
#   launch/xpk.sh --name=facades --cluster=CLUSTER --type=v5litepod-32 --image=IMAGE -- \
#     --config=configs/facades.py --workdir=gs://BUCKET/runs/facades --config.train.batch_size=32
#
# IMAGE is one made of launch/Dockerfile with EXTRAS=tpu,gcp. The workers find one another by
# themselves. Exit code 75 (stopped with everything saved), 1 and deaths by a signal start it again;
# bad input (2) does not. xpk counts them all against --restarts.
#
# --dry-run prints the command; what xpk would make of it:
#   launch/xpk.sh ... --manifest=FILE    writes the JobSet to FILE, and creates nothing
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
fail() {
  echo "xpk.sh: $*" >&2
  exit 2
}

dry='' name='' cluster='' type='' image='' restarts=100 more=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && break ;;
    --dry-run) dry=1 ;;
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --zone=* | --project=*) more+=("$1") ;;
    --manifest=*) more+=(--dry-run "--output-manifest-file=${1#*=}") ;;
    -h | --help) usage && exit ;;
    *) fail "$1: not a flag; see --help" ;;
  esac
  shift
done
for flag in name cluster type image; do
  [ -n "${!flag}" ] || fail "--$flag: needed; see --help"
done
case $restarts in *[!0-9]* | '') fail "--restarts: a whole number" ;; esac
[ $# -gt 0 ] || fail "say what to train: -- --config=FILE --workdir=gs://DIR"

# xpk signals the shell that it runs this in: `exec` puts Python in its place.
words=(xpk workload create "--workload=$name" "--cluster=$cluster" "--tpu-type=$type"
  --num-slices=1 "--docker-image=$image" "--max-restarts=$restarts"
  "--restart-on-exit-codes=1,75" --termination-grace-period-seconds=300
  ${more[@]+"${more[@]}"} "--command=exec python -m p2p_jax.main$(printf ' %q' "$@")")
if [ -n "$dry" ]; then
  printf '%q ' "${words[@]}" | sed 's/ $//'
  echo
else
  exec "${words[@]}"
fi
