#!/usr/bin/env bash
# A study on a machine with an NVIDIA GPU and without network access, in a given time:
#
#     OUT=results BUDGET_MINUTES=7 bash benchmarks/gpu_study.sh        (further arguments go to python -m jaxkd.study)
#     OUT=results BUDGET_MINUTES=5 SCALE=tiny bash benchmarks/gpu_study.sh      (a trial on a CPU)
#
# carry/ holds cifar10_train.tar.xz and cifar10_test.tar.xz (<label>/*.jpg below train/ and test/), and carry/wheels the
# packages that the machine lacks, as benchmarks/gpu_prepare.sh puts them there. The images are unpacked into a scratch
# folder, the study runs there, and $OUT gets results.csv, comparisons.csv, study.md, study.png, times.json, log.txt and
# runs.tar.gz (metrics, result and config of each run): every ten seconds, so that they are there however the script ends.
#
# BUDGET_MINUTES (7) is the time for the study, SCALE (gpu) and PARTS (first) its words, SCRATCH a folder that is kept, so
# that the same call continues, PYTHON (python3) the interpreter.
set -uo pipefail

out=${OUT:?"Set OUT to the folder for the results, as in: OUT=results bash benchmarks/gpu_study.sh"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
minutes=${BUDGET_MINUTES:-7}
start=$(date +%s)

if [ -n "${SCRATCH:-}" ]; then mkdir -p "$SCRATCH" && scratch=$(cd "$SCRATCH" && pwd); else scratch=$(mktemp -d); fi
study="$scratch/study"

collect() { # what is known so far, each file whole or not at all
  local file
  [ -d "$study" ] && (cd "$study" && find . \( -name metrics.jsonl -o -name result.json -o -name config.json \) -print0 |
    tar --create --gzip --null --files-from=- --file="$scratch/runs.tar.gz" 2>/dev/null)
  for file in "$study"/results.csv "$study"/comparisons.csv "$study"/study.md "$study"/study.png "$study"/times.json \
    "$scratch/runs.tar.gz" "$scratch/log.txt"; do
    [ -f "$file" ] && cp "$file" "$scratch/copy" && mv "$scratch/copy" "$out/.partial" && mv "$out/.partial" "$out/${file##*/}"
  done
}

collector=
worker=
finish() {
  [ -n "$worker" ] && kill "$worker" 2>/dev/null && wait "$worker"
  [ -n "$collector" ] && kill "$collector" 2>/dev/null && wait "$collector" 2>/dev/null
  sleep 0.5 # the last lines of the log
  collect
  [ -n "${SCRATCH:-}" ] || rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 143' TERM INT HUP

source benchmarks/gpu_environment.sh "$([ "${SCALE:-gpu}" = gpu ] && echo cuda,cpu || echo cpu)"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/jax} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1

unpack() { # archive, folder inside, split
  [ -d "$scratch/data/$3" ] && return 0
  "$python" - "$1" "$scratch/unpacked" <<'PYTHON' && mkdir -p "$scratch/data" && mv "$scratch/unpacked/$2" "$scratch/data/$3"
import sys
import tarfile

with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2], filter="data")
PYTHON
}
for part in train:train:train test:test:val; do
  IFS=: read -r archive inside split <<<"$part"
  if ! unpack "carry/cifar10_$archive.tar.xz" "$inside" "$split"; then
    echo "benchmarks/gpu_study.sh needs carry/cifar10_$archive.tar.xz with $inside/<label>/*.jpg." >&2
    exit 2
  fi
done
echo "images unpacked after $(($(date +%s) - start)) s" | tee -a "$scratch/log.txt"

while true; do sleep 10 && collect; done &
collector=$!
# The study ends by itself; the limit is for one that does not answer any more.
limit=$(awk "BEGIN { print int($minutes * 60) + 90 }")
timeout --signal=TERM --kill-after=20 "$limit" "$python" -m jaxkd.study \
  "--config=configs/studies/encoding_mismatch.py:scale=${SCALE:-gpu},parts=${PARTS:-first}" --workdir="$study" \
  "--config.data.source=$scratch/data" --budget-minutes="$minutes" --tflops="${TFLOPS:-0}" "$@" \
  > >(tee -a "$scratch/log.txt") 2>&1 &
worker=$!
wait "$worker"
code=$?
worker=
echo "exit code $code after $(($(date +%s) - start)) s" | tee -a "$scratch/log.txt"
exit "$code"
