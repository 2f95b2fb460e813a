#!/usr/bin/env bash
# The super-resolution control of configs/mdbn_x4.py at 4,000 steps with two seeds, on a machine with an NVIDIA GPU:
#
#     OUT=results bash benchmarks/gpu_superres_control.sh            (from anywhere; the machine needs no network access)
#     OUT=results DATA=folder bash benchmarks/gpu_superres_control.sh --tiny   (every part at a small size, on a CPU)
#
# DATA (carry/) holds sr_t91 and sr_bsd200_train, on whose images the networks train, and sr_set5, sr_set14 and
# sr_bsd100, on which they are scored. The runs, in this order: mdbn, mdbn_range, mdbn_skip and edsr with seed 0, the same
# with seed 1, and mdbn_range with seed 0 and a warm-up of the moving average. JOBS (2) train at a time. While they train,
# they are scored on Set5; each new size of an image is a program to compile, so the finished weights are scored on all
# sets on the CPU (fp32), while the next runs train. After each run $OUT gets anew control.json (scores of raw weights and
# moving average, curves, times), tables.md and runs.tar.gz (of each run the scores, metrics.jsonl, result.json,
# config.json, curves.png and the log). BUDGET (9) is the time for everything in minutes: a run is not started where too
# little is left, and what runs then is stopped. RUNS selects runs by name (RUNS="mdbn-seed0 edsr-seed0").
# PYTHON (python3) is the interpreter; packages that the machine lacks are read from carry/wheels. The tables:
#
#     python benchmarks/superres_control_table.py benchmarks/results/control-<device>-<date>.json     ($OUT/control.json)
set -uo pipefail

start=$(date +%s)
out=${OUT:?"Set OUT to the folder for the results, as in: OUT=results bash benchmarks/gpu_superres_control.sh"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
data=${DATA:-}
[ -z "$data" ] || data=$(cd "$data" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
data=${data:-$PWD/carry}
python=${PYTHON:-python3}
budget=${BUDGET:-9}
[[ $budget =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "BUDGET=$budget is no number of minutes. Give e.g. BUDGET=8.5." >&2; exit 2; }
deadline=$((start + $(awk "BEGIN { print int($budget * 60) }") - 20)) # the last seconds are for the summary
tiny=
if [ "${1:-}" = --tiny ]; then tiny=yes; elif [ $# -gt 0 ]; then
  echo "benchmarks/gpu_superres_control.sh knows one option, --tiny, not: $*" >&2
  exit 2
fi
for set in sr_t91 sr_bsd200_train sr_set5 sr_set14 sr_bsd100; do
  [ -d "$data/$set" ] || { echo "$data/$set is missing. Copy the data set there, or set DATA." >&2; exit 2; }
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
source benchmarks/gpu_environment.sh "$([ -n "$tiny" ] && echo cpu || echo cuda,cpu)"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # several processes share the device
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$scratch/jax}" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3

kept="$scratch/kept" # of each run, the small files
mkdir -p "$scratch/train/train" "$kept"
ln -s "$data/sr_t91" "$scratch/train/train/T91"
ln -s "$data/sr_bsd200_train" "$scratch/train/train/BSD200"
common=(--config.data.source="$scratch/train" --config.eval.sets="('Set5=$data/sr_set5',)" --config.log.tensorboard=False
  --config.data.patches.small=skip --config.schedule.min_lr=1e-7 --config.optimizer.learning_rate=5e-4)
if [ -n "$tiny" ]; then
  common+=(--config.schedule.steps=4 --config.eval.every_steps=2 --config.checkpoint.every_steps=2 --config.data.workers=0
    --config.data.patches.size=16 --config.train.batch_size=2 --config.student.args.num_feat=4
    --config.student.args.num_block=1 --config.log.every_steps=2)
else
  common+=(--config.schedule.steps=4000 --config.eval.every_steps=1000 --config.checkpoint.every_steps=2000
    --config.data.workers=5 --config.data.patches.size=96 --config.train.batch_size=8)
fi

left() { echo $((deadline - $(date +%s))); }
limited() { # command, stopped at the deadline: asked first, so that a run saves what it has
  local seconds
  seconds=$(left)
  [ "$seconds" -gt 0 ] && timeout --signal=TERM --kill-after=8 "$seconds" "$@"
}

train() { # run, stage, further options
  local run=$1 stage=$2 folder
  shift 2
  folder="$scratch/$run"
  limited "$python" -m jaxkd.main --config="configs/mdbn_x4.py:control=$stage" --workdir="$folder" "${common[@]}" "$@" \
    >"$kept/$run/log.txt" 2>&1
  cp "$folder/$stage"/{metrics.jsonl,config.json,result.json,curves.png,bicubic.json} "$kept/$run/" 2>/dev/null
}

score() { # run, stage: on the CPU, whole sets, raw weights and moving average
  local run=$1 stage=$2 variant
  [ -f "$kept/$run/result.json" ] || return 0
  for variant in raw ema; do
    JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= limited nice -n 10 "$python" -m jaxkd.evaluate --weights="$scratch/$run/$stage" \
      --variant=$variant --data="Set5=$data/sr_set5" --data="Set14=$data/sr_set14" --data="BSD100=$data/sr_bsd100" \
      >"$scratch/$run/$variant.txt" 2>>"$kept/$run/log.txt" &&
      tail -n 1 "$scratch/$run/$variant.txt" >"$kept/$run/scores_$variant.json"
  done
}

runs=()
for seed in 0 1; do
  for stage in mdbn mdbn_range mdbn_skip edsr; do runs+=("$stage-seed$seed $stage --config.seed=$seed"); done
done
runs+=("mdbn_range-warmup-seed0 mdbn_range --config.seed=0 --config.ema.warmup=True")
wanted=()
for run in "${runs[@]}"; do
  case " ${RUNS:-${run%% *}} " in *" ${run%% *} "*) wanted+=("$run") ;; esac
done

device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo CPU)
version=$("$python" -c 'import importlib.metadata as m; print(m.version("jax"))')
publish() { # what there is so far; whole files only, one writer at a time
  (
    flock 8
    {
      echo "device: $device"
      echo "jax: $version"
      echo "runs: ${wanted[*]%% *}"
      echo "seconds: $(($(date +%s) - start))"
    } >"$kept/about.txt"
    "$python" benchmarks/superres_control_table.py "$kept" --keep="$scratch/control.json" >"$scratch/tables.md" &&
      mv "$scratch/control.json" "$scratch/tables.md" "$out/"
    tar -C "$kept" -czf "$scratch/runs.tar.gz" . && mv "$scratch/runs.tar.gz" "$out/"
  ) 8>"$scratch/publish"
}

mkfifo "$scratch/lanes"
exec 7<>"$scratch/lanes" # one line for each run that may train now
for _ in $(seq "${JOBS:-2}"); do echo >&7; done
longest=0
for run in ${wanted[@]+"${wanted[@]}"}; do
  read -r name stage options <<<"$run"
  seconds=$(left)
  [ "$seconds" -gt 0 ] && read -r -t "$seconds" -u 7 took || break
  [ "${took:-0}" -gt "$longest" ] && longest=$took
  if [ "$(left)" -lt "$longest" ]; then echo "$name: not started, $(left) s left, a run takes $longest s" >&2; break; fi
  mkdir -p "$kept/$name"
  echo "$name: starts after $(($(date +%s) - start)) s" >&2
  {
    begin=$(date +%s)
    # shellcheck disable=SC2086
    train "$name" "$stage" $options
    seconds=$(($(date +%s) - begin))
    echo "$name: trained in $seconds s" >&2
    echo "$seconds" >&7
    publish
    score "$name" "$stage"
    publish
  } &
done
wait
publish
cat "$out/tables.md"
echo "$(($(date +%s) - start)) s"
