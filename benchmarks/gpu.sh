#!/usr/bin/env bash
# Everything that is measured on a machine with an NVIDIA GPU, in under nine minutes:
#
#     OUT=results bash benchmarks/gpu.sh            (from anywhere; the machine needs no network access)
#     OUT=results bash benchmarks/gpu.sh --tiny     (every part at a small size, on a CPU)
#
# The parts, in this order: goldens (device, versions, networks and losses against golden arrays), step_time (DeiT-Tiny
# <- CaiT-S24 against eager PyTorch), trace (the most expensive operations), superres (MDBN x4 to 1280 x 720), analysis
# (all statistics of 1,000 images), attention (self-attention in several forms, cuDNN's and a Triton kernel among them),
# compiled (step_time against torch.compile). Each is a process of its own with a time limit and writes $OUT/<part>.json, also where it fails; it is skipped where too little time is left.
# Not among them unless PARTS names it: population (S students in one step against S steps, 100 to 240 s).
# $OUT/results.json holds them all. On an H100 the first four took 57, 100, 30 and 70 s; torch.compile did not end in
# 150 s, of single blocks not in 100 s, so it is best run alone: PARTS=compiled BUDGET=400.
#
# BUDGET (540) is the time for everything in seconds, PARTS selects parts, BATCH (256) is the batch of step_time and
# trace, PYTHON (python3) the interpreter. Packages that the machine lacks and golden arrays are read from carry/, which
# benchmarks/gpu_prepare.sh fills. To keep the results:
#
#     python benchmarks/merge_results.py $OUT --keep && python benchmarks/results_table.py benchmarks/results/<file>.json
set -uo pipefail

start=$(date +%s)
out=${OUT:?"Set OUT to the folder for the results, as in: OUT=results bash benchmarks/gpu.sh"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
parts=${PARTS:-goldens step_time trace superres analysis attention compiled}
batch=${BATCH:-256}
deadline=$((start + ${BUDGET:-540} - 10)) # the last seconds are for the summary
tiny=
if [ "${1:-}" = --tiny ]; then tiny=yes; elif [ $# -gt 0 ]; then
  echo "benchmarks/gpu.sh knows one option, --tiny, not: $*" >&2
  exit 2
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
source benchmarks/gpu_environment.sh "$([ -n "$tiny" ] && echo cpu || echo cuda,cpu)"
# The traced step is the timed one and is not compiled twice.
export JAX_COMPILATION_CACHE_DIR="$scratch/jax" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor" TRITON_CACHE_DIR="$scratch/triton"

partial() { echo "$scratch/$1.partial.json"; } # what a part knew when it was stopped

part() { # name, least and most seconds, command
  case " $parts " in *" $1 "*) ;; *) return 0 ;; esac
  "$python" benchmarks/gpu_part.py --name="$1" --out="$out/$1.json" --deadline=$deadline --least="$2" --most="$3" \
    --partial="$(partial "$1")" -- "$python" "${@:4}" || true
}

if [ -n "$tiny" ]; then
  step=(--config=configs/deit_cait.py:embedded --batch-size=4 --repeats=2 "--config.distill.pairs=((0,0),(1,1))"
    --config.student.args.depth=2 --config.teacher.args.depth=2)
  superres=(--scales=4 --size=64x40 --repeats=2 --batch-size=2)
  population=(--members=2)
  analysis=(--tiny --count=8 --batch-size=4 --permutations=5)
  attention=(--tiny --batch-size=2 --repeats=2)
else
  step=(--config=configs/deit_cait.py "--batch-size=$batch" --repeats=10 --config.precision.compute=bfloat16)
  superres=(--scales=4 --repeats=7 --batch-size=8)
  population=(--repeats=5 --members=5,2,8)
  analysis=(--count=1000 --batch-size=64)
  attention=("--batch-size=$batch" --repeats=20)
fi
part goldens 30 110 benchmarks/gpu_goldens.py
part step_time 60 200 benchmarks/step_time.py "${step[@]}" --peer=torch --out="$(partial step_time)"
part trace 40 90 benchmarks/step_trace.py "${step[@]}"
part superres 30 100 benchmarks/superres.py "${superres[@]}" --peer=torch --no-compile --no-memory
part analysis 40 200 benchmarks/gpu_analysis.py "${analysis[@]}" --out="$(partial analysis)"
part attention 20 60 benchmarks/attention_forms.py "${attention[@]}" --out="$(partial attention)"
part population 90 240 benchmarks/population.py "${step[@]}" "${population[@]}" --peer=torch --out="$(partial population)"
part compiled 120 400 benchmarks/step_time.py "${step[@]}" --peer=torch --forms=compile_blocks,compile --out="$(partial compiled)"

"$python" benchmarks/merge_results.py "$out" && "$python" benchmarks/results_table.py "$out/results.json"
echo "$(($(date +%s) - start)) s"
