"""Facts about published weights: name -> tag -> what a `ModelSpec` holds after name and tag.

Read off timm 1.0.31 (`default_cfgs`); the first tag of a name is timm's default. Input size in pixels (height, width),
mean and std per channel, share of the centre crop, interpolation, classes of the head (0: none).
"""

from __future__ import annotations

Row = tuple[tuple[int, int], tuple[float, float, float], tuple[float, float, float], float, str, int]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

SPECS: dict[str, dict[str, Row]] = {
    "deit_tiny_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "deit_small_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "deit_base_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "deit_tiny_distilled_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "deit_small_distilled_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "deit_base_distilled_patch16_224": {
        "fb_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
    },
    "vit_tiny_patch16_224": {
        "augreg_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "augreg_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 21843),
    },
    "vit_small_patch16_224": {
        "augreg_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "augreg_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "augreg_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 21843),
        "dino": ((224, 224), *_IMAGENET, 0.9, "bicubic", 0),
    },
    "vit_base_patch16_224": {
        "augreg2_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "augreg_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "orig_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "augreg_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "orig_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 0),
        "augreg_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 21843),
        "sam_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "bamboo": ((224, 224), *_CLIP, 1.0, "bicubic", 115217),
        "dino": ((224, 224), *_IMAGENET, 0.9, "bicubic", 0),
        "mae": ((224, 224), *_IMAGENET, 0.9, "bicubic", 0),
    },
    "vit_large_patch16_224": {
        "augreg_in21k_ft_in1k": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "orig_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 0),
        "augreg_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 21843),
        "mae": ((224, 224), *_IMAGENET, 0.9, "bicubic", 0),
    },
    "vit_huge_patch14_224": {
        "orig_in21k": ((224, 224), *_HALF, 0.9, "bicubic", 0),
        "untrained": ((224, 224), *_HALF, 0.9, "bicubic", 1000),
        "mae": ((224, 224), *_IMAGENET, 0.9, "bicubic", 0),
    },
    "vit_small_patch14_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_base_patch14_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_large_patch14_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_small_patch14_reg4_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_base_patch14_reg4_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_large_patch14_reg4_dinov2": {
        "lvd142m": ((518, 518), *_IMAGENET, 1.0, "bicubic", 0),
    },
    "vit_base_patch16_clip_224": {
        "laion2b_ft_in12k_in1k": ((224, 224), *_CLIP, 0.95, "bicubic", 1000),
        "openai_ft_in12k_in1k": ((224, 224), *_CLIP, 0.95, "bicubic", 1000),
        "laion2b_ft_in1k": ((224, 224), *_CLIP, 1.0, "bicubic", 1000),
        "openai_ft_in1k": ((224, 224), *_CLIP, 0.9, "bicubic", 1000),
        "laion2b_ft_in12k": ((224, 224), *_CLIP, 0.9, "bicubic", 11821),
        "openai_ft_in12k": ((224, 224), *_CLIP, 0.9, "bicubic", 11821),
        "laion2b": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "laion400m_e32": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "datacompxl": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "dfn2b": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "metaclip_2pt5b": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "metaclip_400m": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "openai": ((224, 224), *_CLIP, 0.9, "bicubic", 512),
    },
    "vit_large_patch14_clip_224": {
        "laion2b_ft_in12k_in1k": ((224, 224), *_HALF, 1.0, "bicubic", 1000),
        "openai_ft_in12k_in1k": ((224, 224), *_CLIP, 1.0, "bicubic", 1000),
        "laion2b_ft_in1k": ((224, 224), *_HALF, 1.0, "bicubic", 1000),
        "openai_ft_in1k": ((224, 224), *_CLIP, 1.0, "bicubic", 1000),
        "laion2b_ft_in12k": ((224, 224), *_HALF, 1.0, "bicubic", 11821),
        "openai_ft_in12k": ((224, 224), *_CLIP, 1.0, "bicubic", 11821),
        "laion2b": ((224, 224), *_HALF, 1.0, "bicubic", 768),
        "laion400m_e32": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "datacompxl": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "dfn2b_s39b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "dfn2b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "metaclip_2pt5b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "metaclip_400m": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "openai": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "apple_mclip2_dfndr2b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
    },
    "vit_base_patch16_clip_quickgelu_224": {
        "metaclip_2pt5b": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "metaclip_400m": ((224, 224), *_CLIP, 1.0, "bicubic", 512),
        "openai": ((224, 224), *_CLIP, 0.9, "bicubic", 512),
    },
    "vit_large_patch14_clip_quickgelu_224": {
        "dfn2b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "metaclip_2pt5b": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "metaclip_400m": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
        "openai": ((224, 224), *_CLIP, 1.0, "bicubic", 768),
    },
    "cait_s24_224": {
        "fb_dist_in1k": ((224, 224), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_s24_384": {
        "fb_dist_in1k": ((384, 384), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_s36_384": {
        "fb_dist_in1k": ((384, 384), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_xs24_384": {
        "fb_dist_in1k": ((384, 384), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_xxs24_224": {
        "fb_dist_in1k": ((224, 224), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_xxs24_384": {
        "fb_dist_in1k": ((384, 384), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_xxs36_224": {
        "fb_dist_in1k": ((224, 224), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "cait_xxs36_384": {
        "fb_dist_in1k": ((384, 384), *_IMAGENET, 1.0, "bicubic", 1000),
    },
    "swin_tiny_patch4_window7_224": {
        "ms_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in22k_ft_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in22k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 21841),
    },
    "swin_small_patch4_window7_224": {
        "ms_in22k_ft_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in22k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 21841),
    },
    "swin_base_patch4_window7_224": {
        "ms_in22k_ft_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in22k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 21841),
    },
    "swin_large_patch4_window7_224": {
        "ms_in22k_ft_in1k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 1000),
        "ms_in22k": ((224, 224), *_IMAGENET, 0.9, "bicubic", 21841),
    },
}

# Networks from an image to a larger one. Nobody publishes their weights under a tag, so they have none, and what holds
# for the name holds for all weights: images in [0, 1] as they are. Any input size will do; the one given here is that
# of the low-resolution patches of MDBN's training recipe (256 pixels of the large image, 255 for x3).
_PATCH = {2: 128, 3: 85, 4: 64, 8: 32}
RESTORATION: dict[str, Row] = {
    f"{family}_x{scale}": ((_PATCH[scale],) * 2, (0.0,) * 3, (1.0,) * 3, 1.0, "bicubic", 0)
    for family, scales in (("mdbn", (2, 3, 4, 8)), ("edsr", (2, 3, 4)))
    for scale in scales
}
SPECS |= {name: {} for name in RESTORATION}
