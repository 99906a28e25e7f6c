#!/usr/bin/env bash
# Trains on all workers of a TPU pod slice, through gcloud, and goes on after preemptions.
#
#   launch/tpu_vm.sh [--dry-run] train --name=NAME --zone=ZONE --type=TYPE --version=VERSION \
#     [--project=PROJECT] [--spot] [--restarts=3] [--poll=60] -- --config=FILE --workdir=gs://DIR [...]
#   launch/tpu_vm.sh [--dry-run] create|setup|run|stop|delete [the same flags] [-- ...]
#
# such as, with an image for each of 32 chips, and gcloud's key where it asks several workers at once,
#   ssh-add ~/.ssh/google_compute_engine
#   launch/tpu_vm.sh train --name=pod --zone=us-west4-a --type=v5litepod-32 \
#     --version=v2-alpha-tpuv5-lite --spot -- --config=configs/facades.py \
#     --workdir=gs://BUCKET/runs/facades --config.train.batch_size=32
#
# train   creates what is missing, sets it up and runs; after a preemption all of it again
# create  asks for the slice as a queued resource, and waits until it is there
# setup   copies this folder to all workers and installs it
# run     trains on all workers at once
# stop    has the training on them save and end; run or train goes on
# delete  gives the slice back
#
# TYPE is an accelerator type such as v5litepod-32, VERSION the software for it, such as
# v2-alpha-tpuv5-lite (`gcloud compute tpus tpu-vm versions list --zone=ZONE`). What follows `--` is
# handed to `python3 -m p2p_jax.main`, which finds the other workers by itself. The workdir must be
# one that all workers see: gs://.
#
# Exit code 75 of the training (stopped with everything saved) and preemptions start it again without
# end; other failures on one slice --restarts times, and so often it asks again where a request is
# refused or FAILED. Ctrl-C has it save and end, with exit code 75; a second one leaves at once. The
# slice stays, and costs, until `delete`.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}
say() { echo "tpu_vm.sh: $*" >&2; }

dry='' action='' name='' zone='' project='' type='' version='' spot='' restarts=3 poll=60
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && break ;;
    --dry-run) dry=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=1 ;;
    --restarts=*) restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    -h | --help) usage && exit ;;
    train | create | setup | run | stop | delete) action=$1 ;;
    *) fail "$1: not a flag or an action; see --help" ;;
  esac
  shift
done
[ -n "$action" ] || fail "say what to do: train, create, setup, run, stop or delete; see --help"
if [ -z "$name" ] || [ -z "$zone" ]; then fail "--name and --zone: needed"; fi
case $restarts$poll in *[!0-9]* | '') fail "--restarts and --poll: whole numbers" ;; esac
case $action in
  train | create) if [ -z "$type" ] || [ -z "$version" ]; then fail "--type and --version: needed"; fi ;;
esac
case $action in
  train | run) [ $# -gt 0 ] || fail "say what to train: -- --config=FILE --workdir=gs://DIR" ;;
esac

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")

# Runs a command; in a dry run prints it.
act() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# Sleeps between looks; a signal to stop ends it.
nap() {
  local pid
  [ -z "$stopping" ] || return 0
  sleep "$poll" &
  pid=$!
  wait "$pid" || kill "$pid" 2>/dev/null || true
}

# gcloud speaks to several workers at once: it refuses a key that an agent with others lacks, and one
# with a passphrase would be asked for where nobody can answer. Better known before the slice costs.
check_key() {
  local key=$HOME/.ssh/google_compute_engine mark keys
  case ${type##*-} in [1-8]) return ;; esac # one worker
  if [ -n "$dry" ]; then
    echo "# ends here where ssh-agent lacks gcloud's key, ~/.ssh/google_compute_engine"
    return
  fi
  mark=$(ssh-keygen -lf "$key" 2>/dev/null | awk '{ print $2 }') || mark=''
  keys=$(ssh-add -l 2>/dev/null) || keys=''
  if [ -n "$mark" ]; then
    case $keys in
      *"$mark"*) return ;;
      '') if ssh-keygen -yP '' -f "$key" >/dev/null 2>&1; then return; fi ;; # no agent, no passphrase
    esac
    fail "ssh-agent has not got the key that gcloud uses for several workers: ssh-add $key"
  fi
  fail "$key: needed for several workers, and not there: ssh-keygen -t rsa -f $key && ssh-add $key"
}

# Where ssh itself ends with 255, gcloud repeats the command, ten times at most. Its exit code is that
# of the first worker, by number, that failed: not the highest.
everywhere() { act gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

# The state of the queued resource; nothing where there is none. Any other trouble is told.
state() {
  local found
  [ -z "$dry" ] || return 0
  found=$(gcloud compute tpus queued-resources list "${where[@]}" \
    '--format=value(name.basename(),state.state)') || return 1
  awk -v name="$name" '$1 == name { print $2 }' <<<"$found"
}

request() {
  act gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot:+--spot}
}

give_back() { act gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

fresh='' # whether a slice was asked for, which has nothing on it
create() {
  local now tries=0 silent=0 # requests that failed; looks without an answer
  while [ -z "$stopping" ]; do
    if ! now=$(state); then
      silent=$((silent + 1))
      if [ "$silent" -gt "$restarts" ]; then say "no word of $name" && return 1; fi
      nap
      continue
    fi
    silent=0
    case $now in
      ACTIVE) return ;;
      '')
        fresh=1
        if [ -n "$dry" ]; then
          request
          echo "# waits until its state is ACTIVE; asks again after FAILED or SUSPENDED (preempted)"
          return
        fi
        if ! request; then
          tries=$((tries + 1))
          if [ "$tries" -gt "$restarts" ]; then say "$name could not be asked for" && return 1; fi
          nap
        fi
        ;;
      FAILED)
        tries=$((tries + 1))
        if [ "$tries" -gt "$restarts" ]; then
          say "$name is FAILED: gcloud compute tpus queued-resources describe $name ${where[*]}"
          return 1
        fi
        say "$name is FAILED; asking anew"
        nap
        give_back || true # else it is FAILED still
        ;;
      SUSPENDED)
        say "$name is SUSPENDED (preempted); asking anew"
        give_back || nap
        ;;
      *)
        say "$name is $now"
        nap
        ;;
    esac
  done
  return 75
}

# shellcheck disable=SC2016 # what stands in single quotes is for the workers' shells
setup() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  everywhere 'mkdir -p p2p_jax' &&
    act gcloud compute tpus tpu-vm scp --recurse "$root/p2p_jax" "$root/configs" \
      "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$name:p2p_jax/" \
      "${where[@]}" --worker=all &&
    # The machines' own Python may be older than 3.11, and closed to pip.
    everywhere 'cd p2p_jax && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 venv && ~/.local/bin/uv pip install --quiet --python=venv/bin/python ".[tpu,gcp]"'
}

# The lock lasts as long as the training: where an ssh connection broke, what it left behind may
# still hold the chips.
run() {
  everywhere "cd p2p_jax && flock --timeout=600 --conflict-exit-code=1 lock sh -c 'echo \$\$ >pid && exec \"\$@\"' sh venv/bin/python -m p2p_jax.main$(printf ' %q' "$@")"
}

# To one worker would do: all agree to stop.
# shellcheck disable=SC2016 # for the workers' shells
stop() { everywhere 'kill -TERM "$(cat p2p_jax/pid)"'; }

stopping='' training=''
interrupted() {
  [ -z "$stopping" ] || exit 130
  stopping=1
  if [ -n "$training" ]; then
    say "has the training save and end; once more leaves at once"
    { stop || say "could not reach it"; } </dev/null &
  else
    say "leaves after the command under way; once more at once"
  fi
}

# Runs in the background, so that a signal is acted on while it runs; as a job of its own (set -m),
# which Ctrl-C in the terminal does not reach. Such a job would be stopped if it read from there.
run_and_wait() {
  local code=0
  set -m
  run "$@" </dev/null &
  training=$!
  set +m
  while kill -0 "$training" 2>/dev/null; do
    wait "$training" || true # a trapped signal ends it early
  done
  wait "$training" || code=$?
  training=''
  return "$code"
}

train() {
  local left=$restarts code ready='' now
  while true; do
    if [ "$action" = train ]; then
      fresh=''
      create || return
      [ -z "$fresh" ] || ready='' left=$restarts
      if [ -z "$ready" ]; then
        if setup; then ready=1; fi
        [ -z "$stopping" ] || return 75
      fi
    else
      ready=1
    fi
    code=1
    if [ -n "$ready" ]; then
      code=0
      run_and_wait "$@" || code=$?
    fi
    [ -z "$dry" ] || return 0
    case $code in
      0 | 2) return "$code" ;;
    esac
    [ -z "$stopping" ] || return "$code"
    nap # first: a slice that is being taken away is called ACTIVE for a while
    [ -z "$stopping" ] || return "$code"
    if [ "$code" -eq 75 ]; then
      left=$restarts
    else
      now=''
      [ "$action" != train ] || now=$(state) || now=''
      if [ "$now" = ACTIVE ] || [ "$action" = run ]; then
        [ "$left" -gt 0 ] || return "$code"
        left=$((left - 1))
      fi
    fi
    say "exit code $code; starting again"
  done
}

case $action in
  train | run | create) [ -n "$dry" ] || trap interrupted INT TERM ;;
esac
case $action in
  train | create) check_key ;;
esac
case $action in
  train | run)
    train "$@"
    if [ -n "$dry" ]; then
      echo "# starts again: after exit code 75 or a preemption; after other failures $restarts times"
    fi
    ;;
  create) create ;;
  setup) setup ;;
  stop) stop ;;
  delete) give_back ;;
esac
