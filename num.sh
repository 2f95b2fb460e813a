. /tmp/review4/env.sh
CT="--model-arg=img_size=64 --model-arg=patch_size=8 --model-arg=embed_dim=48 --model-arg=depth=3 --model-arg=num_heads=2"
DT="--model-arg=img_size=64 --model-arg=patch_size=8 --model-arg=embed_dim=24 --model-arg=depth=4 --model-arg=num_heads=2"
N="--model=cait_s24_224 $CT --model=deit_tiny_patch16_224 $DT --images=$IMG --max-images=40 --permutations=3 --saliency=0 --no-figures --overwrite"
$A $N --out=/tmp/review4/n8 2>&1 | tail -8
XLA_FLAGS=--xla_force_host_platform_device_count=8 $A $N --batch-size=16 --low-memory --out=/tmp/review4/n16x8 2>&1 | tail -3
$A $N --batch-size=5 --entropy-range=exact --out=/tmp/review4/n5ex 2>&1 | tail -3
