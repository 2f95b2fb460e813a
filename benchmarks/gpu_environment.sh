# Sourced by the scripts for a GPU machine, from the repository root: packages, devices and folders of their processes.
#
#     source benchmarks/gpu_environment.sh cuda,cpu        (or cpu: the devices of JAX, unless JAX_PLATFORMS is set)
#
# Reads $python, the interpreter, and $scratch, a folder; packages that the machine lacks come from carry/wheels.
# shellcheck shell=bash disable=SC2154
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if compgen -G "carry/wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$scratch/site" carry/wheels/*.whl && export PYTHONPATH="$PYTHONPATH:$scratch/site"
fi
# Without the variable a CPU would be used silently where CUDA cannot be initialised.
export JAX_PLATFORMS=${JAX_PLATFORMS:-$1}
