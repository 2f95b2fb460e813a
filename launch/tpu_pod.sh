#!/usr/bin/env bash
# Creates a slice of Cloud TPUs, trains on it, and creates it again after a preemption.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_pod.sh VERB [OPTIONS] [-- ARGUMENTS OF jaxkd.main]

Verbs:
  up        everything: create, install, run; create again and continue after a preemption; delete when it is finished
  create    request the slice as a queued resource and wait until it is there
  install   copy this checkout to all workers and install it
  run       start training on all workers, in the background
  status    state of the slice, and of the run on each worker: running, none, lost or its exit code
  logs      last lines of the output of each worker
  stop      ask all workers to save a checkpoint and end; the slice stays and is charged for
  delete    delete the slice

Options:
  --zone=ZONE            required, e.g. us-west4-a
  --project=PROJECT      default: that of gcloud
  --name=NAME            of the slice (default jaxkd)
  --type=TYPE            accelerator type (default v5litepod-16)
  --runtime=VERSION      of the TPU VM (default v2-alpha-tpuv5-lite, for v5e; v2-alpha-tpuv6e for v6e)
  --spot                 cheaper, and may be preempted at any time
  --nfs=HOST:/SHARE      mounted on all workers as /mnt/jaxkd; `up` needs it, as the disks of the workers go with them
  --restarts=N           how often `up` starts the run again (default 50)
  --poll=SECONDS         between two looks at the slice (default 30)
  --keep                 `up` does not delete the slice at the end
  --dry-run              print every command and run none

  launch/tpu_pod.sh up --zone=us-west4-a --spot --nfs=10.0.0.2:/share -- \
    --config=configs/deit_cait.py --workdir=/mnt/jaxkd/runs/a --config.data.source=/mnt/jaxkd/imagenet

Ctrl-C ends the script and not the run; `up` with the same arguments attaches to it again.
Exit codes: 0 finished, 2 failed (the slice stays), 3 stopped by `stop` (the slice stays).
TEXT
}

say() { echo "launch/tpu_pod.sh: $*" >&2; }

fail() { # one sentence on what is wrong, one on what to do
  say "$@"
  exit 2
}

show() { # the words of a command, quoted as they would be typed
  local word line=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then word="'${word//\'/\'\\\'\'}'"; fi
    line+="${line:+ }$word"
  done
  echo "$line"
}

call() {
  if [[ -n $dry ]]; then show "$@"; else "$@"; fi
}

on_workers() { # command, for all workers
  call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$1" --quiet
}

describe() {
  call gcloud compute tpus queued-resources describe "$name" "${place[@]}" '--format=value(state.state)' --quiet
}

state() { # of the queued resource, MISSING where there is none, UNKNOWN where gcloud does not say
  local answer
  if answer=$(describe 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

create() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  if [[ -n $spot ]]; then options+=(--spot); fi
  if [[ -n $nfs ]]; then options+=(--metadata=enable-oslogin=TRUE); fi # one user id on all workers
  call gcloud compute tpus queued-resources create "$name" "${place[@]}" "${options[@]}" --quiet
}

wait_until_active() { # returns 1 where the slice was taken away before
  local now before="" unknown=0
  if [[ -n $dry ]]; then
    echo "# every $poll seconds until the state is ACTIVE:"
    describe
    return
  fi
  while true; do
    now=$(state)
    if [[ $now != "$before" ]]; then say "$name is $now"; fi
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      FAILED)
        fail "The request for $name failed. The verb delete removes it; this says why:" \
          "gcloud compute tpus queued-resources describe $name ${place[*]}"
        ;;
      MISSING) fail "There is no $name. Create it with launch/tpu_pod.sh create." ;;
      UNKNOWN) ((++unknown < 10)) || fail "gcloud gave no state ten times. Check the network and gcloud auth login." ;;
    esac
    sleep "$poll"
  done
}

install() {
  local archive remote
  archive=${TMPDIR:-/tmp}/jaxkd.tar.gz
  # Tracked and new files, without those that git ignores.
  call bash -c "git ls-files -co --exclude-standard -z | tar --null -T - -czf $archive" || return
  call gcloud compute tpus tpu-vm scp "$archive" "$name:jaxkd.tar.gz" "${place[@]}" --worker=all --quiet || return
  remote="set -e; mkdir -p ~/jaxkd; tar -xzf ~/jaxkd.tar.gz -C ~/jaxkd; cd ~/jaxkd; PATH=~/.local/bin:\$PATH; "
  # The images of TPU VMs have Python 3.10.
  remote+="command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; "
  remote+="uv venv --quiet --allow-existing --python 3.12 .venv; uv pip install --quiet --python .venv -e '.[tpu,storage]'"
  if [[ -n $nfs ]]; then
    remote+="; mountpoint -q /mnt/jaxkd || { sudo apt-get install -qq -y nfs-common; sudo mkdir -p /mnt/jaxkd; "
    remote+="sudo mount -t nfs $nfs /mnt/jaxkd; sudo chmod a+rwx /mnt/jaxkd; }"
  fi
  on_workers "$remote"
}

run() { # arguments of jaxkd.main
  local words inner
  words=$(printf ' %q' "$@")
  inner="cd ~/jaxkd; .venv/bin/python -u -m jaxkd.main --distributed$words & "
  inner+="echo \$! > ~/jaxkd-run/pid; wait \$!; echo \$? > ~/jaxkd-run/code"
  # In a session of its own, so that the run outlives the connection.
  inner="nohup setsid bash -c $(printf %q "$inner") > ~/jaxkd-run/log 2>&1 < /dev/null &"
  on_workers "mkdir -p ~/jaxkd-run; rm -f ~/jaxkd-run/code ~/jaxkd-run/pid; $inner sleep 1"
}

codes() { # one line a worker: code=none, running, lost (it ended without a code) or a number
  local remote="cd ~/jaxkd-run 2>/dev/null; "
  remote+="if [ -f code ]; then c=\$(cat code); elif [ ! -f pid ]; then c=none; "
  remote+="elif kill -0 \$(cat pid); then c=running; else c=lost; fi 2>/dev/null; echo code=\$c \$(hostname)"
  on_workers "$remote"
}

outcome() { # running, finished, stopped, failed, none, lost or gone, of all workers together
  local found
  # gcloud fails where a worker does not answer; the codes of the others alone would be no end of the run.
  found=$(codes 2>/dev/null) || { echo gone; return; }
  found=$(sed -n 's/^code=\([a-z0-9]*\).*/\1/p' <<< "$found" | sort -u | tr '\n' ' ')
  case " $found" in
    " ") echo gone ;;
    *" running "*) echo running ;;
    *" none "*) echo none ;;
    *" lost "*) echo lost ;;
    " 0 ") echo finished ;;
    " 3 " | " 143 " | " 143 3 " | " 3 143 ") echo stopped ;;
    *) echo failed ;;
  esac
}

is_preempted() { # whether the slice is taken away; its state may say so only after the run has ended
  local look now
  for look in 1 2 3 4; do
    now=$(state)
    case $now in
      SUSPENDING | SUSPENDED | MISSING) return 0 ;;
    esac
    if ((look < 4)); then sleep "$poll"; fi
  done
  return 1
}

watch_run() { # sets `result` to finished, stopped, failed, lost or preempted
  local silent=0
  while true; do
    result=$(outcome)
    case $result in
      finished) return ;;
      running) silent=0 ;;
      gone)
        if is_preempted; then result=preempted; return; fi
        ((++silent < 10)) || fail "The workers of $name do not answer, though it is there. Try the verb status."
        ;;
      *)
        if is_preempted; then result=preempted; fi
        return
        ;;
    esac
    sleep "$poll"
  done
}

delete() {
  call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

dry_up() {
  create
  wait_until_active
  install
  run "$@"
  echo "# every $poll seconds until all workers have ended; after a preemption delete, and all of this again:"
  codes
  if [[ -z $keep ]]; then delete; fi
}

up() {
  local starts result now
  if [[ -n $dry ]]; then dry_up "$@"; return; fi
  trap 'say "The run goes on, and $name is charged for; up attaches again, delete ends it."; exit 130' INT
  for ((starts = 0; starts <= restarts; starts++)); do
    while now=$(state) && [[ $now == SUSPENDING || $now == DELETING ]]; do sleep "$poll"; done
    case $now in
      UNKNOWN) fail "gcloud does not say whether $name exists. Check --zone, --project and gcloud auth login." ;;
      MISSING) create ;;
      SUSPENDED) delete; create ;;
    esac
    wait_until_active || continue
    if [[ $(outcome) != running ]]; then
      if ! { install && run "$@"; }; then
        if is_preempted; then continue; fi
        fail "Installing or starting failed on $name, which stays and is charged for. Correct it and call up again," \
          "or delete it."
      fi
    fi
    watch_run
    case $result in
      finished)
        if [[ -z $keep ]]; then delete; fi
        return
        ;;
      stopped) say "Stopped; $name stays and is charged for. up continues, delete ends it."; exit 3 ;;
      failed)
        on_workers 'tail -n 20 ~/jaxkd-run/log' || true
        fail "The run failed (above); $name stays and is charged for. Correct it and call up again, or delete it."
        ;;
      *) say "The run was interrupted ($result); starting it again." ;;
    esac
  done
  fail "The run was interrupted $starts times, and --restarts=$restarts. Call up again to continue."
}

verb=${1:-}
case $verb in
  up | create | install | run | status | logs | stop | delete) shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "\"$verb\" is no verb. Write up, create, install, run, status, logs, stop or delete; see --help." ;;
esac
zone="" project="" name=jaxkd type=v5litepod-16 runtime=v2-alpha-tpuv5-lite
spot="" nfs="" restarts=50 poll=30 keep="" dry=""
while (($#)); do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --nfs=*) nfs=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --keep) keep=1 ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "\"$1\" is not an option. Put the arguments of jaxkd.main after --; see launch/tpu_pod.sh --help." ;;
  esac
  shift
done
[[ -n $zone ]] || fail "No --zone was given. Write for example --zone=us-west4-a."
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "--name=$name is no name of a TPU. Use small letters, digits and dashes, a letter first."
[[ $restarts =~ ^[0-9]+$ && $poll =~ ^[0-9]+$ ]] ||
  fail "--restarts=$restarts or --poll=$poll is not a number. Give whole numbers."
[[ -z $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*$ ]] ||
  fail "--nfs=$nfs is not HOST:/SHARE. Write for example --nfs=10.0.0.2:/share."
if [[ $verb == up || $verb == run ]]; then
  (($#)) || fail "No arguments of jaxkd.main were given. Write -- --config=FILE --workdir=FOLDER at the end."
  workdir=""
  for word in "$@"; do [[ $word != --workdir=* ]] || workdir=${word#*=}; done
  if [[ $verb == up && ( -z $nfs || $workdir != /mnt/jaxkd/* ) ]]; then
    fail "up needs --nfs=HOST:/SHARE and a --workdir=/mnt/jaxkd/..., as a preemption deletes the disks of the" \
      "workers. Give both."
  fi
elif (($#)); then
  fail "$verb takes no arguments of jaxkd.main. Leave out what follows --."
fi
place=("--zone=$zone")
if [[ -n $project ]]; then place+=("--project=$project"); fi
if [[ -z $dry ]]; then
  command -v gcloud >/dev/null ||
    fail "There is no gcloud. Install it (https://cloud.google.com/sdk/docs/install) and call gcloud auth login."
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case $verb in
  create)
    create
    wait_until_active || fail "$name was taken away before it was ready. Delete it and create it again."
    ;;
  status)
    describe
    codes
    ;;
  logs) on_workers 'tail -n 100 ~/jaxkd-run/log' ;;
  stop) on_workers "kill -TERM \$(cat ~/jaxkd-run/pid)" ;;
  *) "$verb" "$@" ;;
esac
