#!/usr/bin/env bash
# Starts one run as several processes on this machine.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local.sh [-n N] [--cpu] [--devices=D] [--port=PORT] -- ARGUMENTS OF jaxkd.main

Starts N processes of one distributed run on this machine and prefixes each line of output with the rank.

  -n N          number of processes; by default one for each GPU, or 2 without GPUs
  --cpu         use CPU devices although there are GPUs
  --devices=D   CPU devices of each process (default 1); GPUs are split evenly over the processes
  --port=PORT   of the coordinator on 127.0.0.1 (default: a free one)

  launch/local.sh -n 2 -- --config=configs/deit_cait.py:embedded --workdir=runs/two

CUDA_VISIBLE_DEVICES limits the GPUs, PYTHON names the interpreter. One process uses all GPUs of a machine, so this
is for tests of distributed runs and for machines whose data loading one process cannot keep up with.
Ctrl-C, SIGTERM and SIGHUP go to all processes: each saves and ends with 3, and the same command continues.
Ends with the code of the first process that fails, after the others have ended.
TEXT
}

fail() {
  echo "launch/local.sh: $1" >&2
  exit 2
}

is_count() { [[ $1 =~ ^[1-9][0-9]{0,3}$ ]]; }

processes="" cpu="" devices=1 port=""
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    -n) (($# > 1)) || fail "-n has no number. Write -n 2."; processes=$2; shift ;;
    -n=*) processes=${1#*=} ;;
    --cpu) cpu=1 ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --) shift; break ;;
    *) fail "\"$1\" is not an option. Put the arguments of jaxkd.main after --; see launch/local.sh --help." ;;
  esac
  shift
done
(($#)) || fail "No arguments of jaxkd.main were given. Write -- --config=FILE --workdir=FOLDER at the end."

# Unset means all GPUs of the machine, empty means none.
gpus=()
if [[ -z $cpu && -n ${CUDA_VISIBLE_DEVICES-unset} ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null) || found=""
    read -r -d '' -a gpus <<<"$found" || true
  fi
fi
if [[ -z $processes ]]; then
  processes=2
  if ((${#gpus[@]})); then processes=${#gpus[@]}; fi
fi
is_count "$processes" || fail "-n $processes is not a number of processes. Give a whole number from 1."
is_count "$devices" || fail "--devices=$devices is not a number of devices. Give a whole number from 1."
share=0
if ((${#gpus[@]})); then
  share=$((${#gpus[@]} / processes))
  ((share * processes == ${#gpus[@]})) ||
    fail "${#gpus[@]} GPUs do not divide over $processes processes. Choose another -n, or add --cpu."
fi
python=${PYTHON:-python}
command -v "$python" >/dev/null || fail "There is no \"$python\". Activate the environment of jaxkd, or set PYTHON."
if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$processes" PYTHONUNBUFFERED=1
pids=()
start() { # rank, arguments of jaxkd.main
  local rank=$1
  shift
  export JAX_PROCESS_ID="$rank"
  if ((share)); then
    local mine=("${gpus[@]:rank * share:share}")
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}")
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((share - 1))) # else JAX takes one GPU where it finds variables of Slurm
    export CUDA_VISIBLE_DEVICES JAX_LOCAL_DEVICE_IDS
  else
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"
  fi
  # The filter must outlive Ctrl-C, or the process could not write its last lines.
  "$python" -m jaxkd.main --distributed "$@" </dev/null > >(trap '' INT TERM HUP; exec sed -u "s/^/[$rank] /") 2>&1 &
  pids+=($!)
}

to_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
}
trap 'to_all TERM' TERM
trap 'to_all INT' INT
trap 'to_all HUP' HUP

# With job control each process has a group of its own: Ctrl-C reaches it once, through `to_all`, and a second
# signal, which would end it without saving, is the user's.
set -m
for ((rank = 0; rank < processes; rank++)); do start "$rank" "$@"; done

first=0 kill_at=""
while ((${#pids[@]})); do
  running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    if ((code && !first)); then first=$code; fi
  done
  pids=(${running[@]+"${running[@]}"})
  ((${#pids[@]})) || break
  # After a failure the others wait for a process that is gone. Code 3 is a stop on request: they are saving.
  if ((first && first != 3)) && [[ -z $kill_at ]]; then
    to_all TERM
    kill_at=$((SECONDS + 60))
  elif [[ -n $kill_at ]] && ((SECONDS > kill_at)); then
    to_all KILL
  fi
  sleep 0.2 || true
done
exit "$first"
