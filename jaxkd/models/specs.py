"""Facts about published weights: the `ModelSpec` of every tag of every name.

Read off timm 1.0.31 (`default_cfgs`); the first tag of a name is timm's default.
"""

from __future__ import annotations

from jaxkd.models.contract import ModelSpec

# Mean and std per channel.
_CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

# A line: name, where {a,b} stands for one name with a and one with b; side of the square input in pixels; constants;
# crop_pct; classes of the head (0: none); tags. All networks take bicubic interpolation.
_PUBLISHED = """
deit_{tiny,small,base}_patch16_224 224 imagenet 0.9 1000 fb_in1k
deit_{tiny,small,base}_distilled_patch16_224 224 imagenet 0.9 1000 fb_in1k
vit_tiny_patch16_224 224 half 0.9 1000 augreg_in21k_ft_in1k
vit_tiny_patch16_224 224 half 0.9 21843 augreg_in21k
vit_small_patch16_224 224 half 0.9 1000 augreg_in21k_ft_in1k augreg_in1k
vit_small_patch16_224 224 half 0.9 21843 augreg_in21k
vit_small_patch16_224 224 imagenet 0.9 0 dino
vit_base_patch16_224 224 half 0.9 1000 augreg2_in21k_ft_in1k augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in1k
vit_base_patch16_224 224 half 0.9 0 orig_in21k
vit_base_patch16_224 224 half 0.9 21843 augreg_in21k
vit_base_patch16_224 224 half 0.9 1000 sam_in1k
vit_base_patch16_224 224 clip 1.0 115217 bamboo
vit_base_patch16_224 224 imagenet 0.9 0 dino mae
vit_large_patch16_224 224 half 0.9 1000 augreg_in21k_ft_in1k
vit_large_patch16_224 224 half 0.9 0 orig_in21k
vit_large_patch16_224 224 half 0.9 21843 augreg_in21k
vit_large_patch16_224 224 imagenet 0.9 0 mae
vit_huge_patch14_224 224 half 0.9 0 orig_in21k
vit_huge_patch14_224 224 half 0.9 1000 untrained
vit_huge_patch14_224 224 imagenet 0.9 0 mae
vit_{small,base,large}_patch14_dinov2 518 imagenet 1.0 0 lvd142m
vit_{small,base,large}_patch14_reg4_dinov2 518 imagenet 1.0 0 lvd142m
vit_base_patch16_clip_224 224 clip 0.95 1000 laion2b_ft_in12k_in1k openai_ft_in12k_in1k
vit_base_patch16_clip_224 224 clip 1.0 1000 laion2b_ft_in1k
vit_base_patch16_clip_224 224 clip 0.9 1000 openai_ft_in1k
vit_base_patch16_clip_224 224 clip 0.9 11821 laion2b_ft_in12k openai_ft_in12k
vit_base_patch16_clip_224 224 clip 1.0 512 laion2b laion400m_e32 datacompxl dfn2b metaclip_2pt5b metaclip_400m
vit_base_patch16_clip_224 224 clip 0.9 512 openai
vit_large_patch14_clip_224 224 half 1.0 1000 laion2b_ft_in12k_in1k
vit_large_patch14_clip_224 224 clip 1.0 1000 openai_ft_in12k_in1k
vit_large_patch14_clip_224 224 half 1.0 1000 laion2b_ft_in1k
vit_large_patch14_clip_224 224 clip 1.0 1000 openai_ft_in1k
vit_large_patch14_clip_224 224 half 1.0 11821 laion2b_ft_in12k
vit_large_patch14_clip_224 224 clip 1.0 11821 openai_ft_in12k
vit_large_patch14_clip_224 224 half 1.0 768 laion2b
vit_large_patch14_clip_224 224 clip 1.0 768 laion400m_e32 datacompxl dfn2b_s39b dfn2b metaclip_2pt5b metaclip_400m
vit_large_patch14_clip_224 224 clip 1.0 768 openai apple_mclip2_dfndr2b
vit_base_patch16_clip_quickgelu_224 224 clip 1.0 512 metaclip_2pt5b metaclip_400m
vit_base_patch16_clip_quickgelu_224 224 clip 0.9 512 openai
vit_large_patch14_clip_quickgelu_224 224 clip 1.0 768 dfn2b metaclip_2pt5b metaclip_400m openai
cait_{s24,xxs24,xxs36}_224 224 imagenet 1.0 1000 fb_dist_in1k
cait_{s24,s36,xs24,xxs24,xxs36}_384 384 imagenet 1.0 1000 fb_dist_in1k
swin_tiny_patch4_window7_224 224 imagenet 0.9 1000 ms_in1k ms_in22k_ft_in1k
swin_{small,base}_patch4_window7_224 224 imagenet 0.9 1000 ms_in22k_ft_in1k ms_in1k
swin_large_patch4_window7_224 224 imagenet 0.9 1000 ms_in22k_ft_in1k
swin_{tiny,small,base,large}_patch4_window7_224 224 imagenet 0.9 21841 ms_in22k
"""

# Students of the encoding-mismatch paper, without published weights; the authors score 224 of 256 pixels.
_STUDENTS = """
lift_deit_{tiny,small}_patch16_224 224 imagenet 0.875 1000
widelast_deit_{tiny,small}_patch16_224 224 imagenet 0.875 1000
uniformwide_deit_{tiny,small}_patch16_224 224 imagenet 0.875 1000
"""

# Networks from an image to a larger one, lines as above without tags. Nobody publishes their weights under a tag, so
# what holds for the name holds for all weights: images in [0, 1] as they are. Any input size will do; the one given
# here is that of the low-resolution patches of MDBN's training recipe (256 pixels of the large image, 255 for x3).
_RESTORATION = """
{mdbn,edsr}_x2 128 none 1.0 0
{mdbn,edsr}_x3 85 none 1.0 0
{mdbn,edsr}_x4 64 none 1.0 0
mdbn_x8 32 none 1.0 0
"""

# Encoders of EEG words: 56 words of 8 bands x 105 electrodes. The constants of images say nothing about them.
_EEG_WORDS = "linear tiny base context"


def _read(table: str, task: str) -> dict[str, list[ModelSpec]]:
    specs: dict[str, list[ModelSpec]] = {}
    for line in table.strip().splitlines():
        pattern, pixels, constants, crop, classes, *tags = line.split()
        before, _, rest = pattern.partition("{")
        choices, _, after = rest.partition("}")
        size = (int(pixels), int(pixels))
        for name in (before + choice + after for choice in choices.split(",")):
            for tag in tags or [""]:
                facts = ModelSpec(
                    name, tag, size, *_CONSTANTS[constants], float(crop), num_classes=int(classes), task=task
                )
                specs.setdefault(name, []).append(facts)
    return specs


SPECS: dict[str, list[ModelSpec]] = {
    **_read(_PUBLISHED, "classification"),
    **_read(_STUDENTS, "classification"),
    **_read(_RESTORATION, "restoration"),
    **{
        name: [ModelSpec(name, "", (56, 840), *_CONSTANTS["none"], 1.0, num_classes=0, task="eeg_words")]
        for name in (f"eeg_words_{size}" for size in _EEG_WORDS.split())
    },
}
