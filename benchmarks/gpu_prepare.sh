#!/usr/bin/env bash
# Fills carry/ with what benchmarks/gpu.sh needs on a GPU machine without network access: the wheels of packages that
# such a machine lacks (it has JAX, PyTorch, timm, flax, optax, orbax-checkpoint and their needs), and golden arrays.
#
#     bash benchmarks/gpu_prepare.sh FOLDER_WITH_GOLDENS
#
# Run it from the repository root where pip works. PYTHON_VERSION (3.12) is that of the GPU machine.
set -euo pipefail

goldens=${1:?give the folder with the golden arrays}
python_version=${PYTHON_VERSION:-3.12}
packages=(
  clu==0.0.12 ml_collections==1.1.0 tensorboardX==2.6.5
  grain==0.2.18 array_record==0.8.6 portpicker==1.6.0 importlib_resources==7.1.0
)
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

rm -rf carry
mkdir -p carry/wheels carry/golden
# Without their needs: those that are missing are in the list above.
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python_version" --implementation cp \
  "${platforms[@]}" --dest carry/wheels "${packages[@]}"
for name in deit deit_distilled cait swin swin_nonsquare mdbn_and_sr_metrics kd_losses channel_spectrum_entropy \
  lowrank_pca_sep; do
  cp "$goldens/$name.npz" carry/golden/
done
chmod -R u+w carry
du -sh carry/wheels carry/golden carry
