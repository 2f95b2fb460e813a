"""The cause of a misfit between a file of weights and a network, in words, from names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from jaxkd.errors import Shape

_FAMILIES = (
    ("a CaiT", r"blocks_token_only\.\d+\."),
    ("a Swin", r"layers\.\d+\.blocks\.\d+\."),
    ("a ViT", r"blocks\.\d+\."),
    ("an MDBN", r"body\.\d+\.baseblock1\."),
    ("an EDSR", r"body\.\d+\.conv1\."),
)


def cause(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> str:
    """Differences in words, e.g. "The file is 48 wide with 2 blocks; you asked for 192 wide with 12 blocks."

    Args:
      expected: name -> shape of the network, in PyTorch's layout.
      given: name -> shape of the file.

    Returns:
      One sentence, or "" where the sizes that it knows agree.
    """
    asked, held = _facts(expected), _facts(given)
    if not held:
        return f"It has none of the network's names; its first is {next(iter(given))}." if given else "It is empty."
    differing = [key for key in asked | held if asked.get(key) != held.get(key)]
    if "family" in differing:
        differing = ["family", *(k for k in ("width", "blocks") if k in asked and k in held)]
    if not differing:
        return ""
    file, network = (_in_words(facts, differing) for facts in (held, asked))
    verb = "is" if set(differing) & set(_ADJECTIVES) else "has"
    has_none = "projector" in differing and asked["projector"].startswith("no ")
    lift = _lift_name(given) if has_none else ""
    advice = f" It is a Lift, such as {lift}." if lift else ""
    return f"The file {verb} {file}; you asked for {network.removeprefix('for ')}.{advice}"


def _lift_name(shapes: Mapping[str, Shape]) -> str:
    """The registered Lift and its width, by a file's shapes; "" without a projector."""
    widths = [s for n, s in shapes.items() if re.fullmatch(r"projector(s\.\d+)?\.weight", n) and len(s) == 2]
    if not widths:
        return ""
    target, width = widths[-1]
    return f"lift_deit_{'small' if width == 384 else 'tiny'}_patch16_224(target_dim={target})"


_ADJECTIVES = ("family", "width", "enlarging")  # all other facts are things that a network has


def _in_words(facts: Mapping[str, str], keys: list[str]) -> str:
    """ "a ViT 48 wide with 2 blocks and 3 classes"."""
    is_so = " ".join(facts[k] for k in keys if k in _ADJECTIVES and k in facts)
    has = [facts[k] for k in keys if k not in _ADJECTIVES and k in facts]
    things = ", ".join(has[:-1]) + (" and " if len(has) > 1 else "") + has[-1] if has else ""
    return f"{is_so}{' with ' if is_so and things else ''}{things}"


def _facts(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Family, sizes and parts of a network, in words, by the names and shapes of its weights."""
    # A Lift has its DeiT below "base."; the last blocks of a WideLast have names of their own.
    shapes = {
        re.sub(r"^wide_blocks?\.(?=\d)|^wide_(?=block\.)", "blocks.", n.removeprefix("base.")): s
        for n, s in shapes.items()
    }
    facts: dict[str, str] = {}
    family = next((words for words, pattern in _FAMILIES if any(re.match(pattern, n) for n in shapes)), "")
    if not family:
        return facts
    facts["family"] = family
    first = next((shapes[n] for n in ("patch_embed.proj.weight", "conv_first.weight") if n in shapes), ())
    if len(first) == 4:
        facts["width"] = f"{first[0]} wide"
    ups = [s[0] / s[1] for n, s in shapes.items() if re.fullmatch(r"upsample\.\d+\.weight", n) and len(s) == 4 and s[1]]
    if ups:
        facts["enlarging"] = f"x{round(math.sqrt(math.prod(ups)))}"
    blocks: dict[str, set[str]] = {}
    for name in shapes:
        if match := re.match(r"(blocks|blocks_token_only|layers\.\d+\.blocks|body)\.(\d+|block)\.", name):
            blocks.setdefault(match[1], set()).add(match[2])
    counts = [len(indices) for indices in blocks.values()]
    facts["blocks"] = f"{' + '.join(map(str, counts))} block{'s' if counts != [1] else ''}"
    if ups:
        return facts
    if len(first) == 4:
        facts["patch"] = f"patches of {first[2]} x {first[3]} pixels"
        facts["channels"] = f"{first[1]} channels"
    for name, words in (
        ("dist_token", "distillation token"),
        ("norm_pre.weight", "norm before the blocks"),
    ):
        facts[name] = f"{'a' if name in shapes else 'no'} {words}"
    norm = "with LayerNorm" if any(n.startswith("projector_norm") for n in shapes) else "without LayerNorm"
    for name, words, more in (
        ("projector", "projector{} after the blocks", f", {norm}"),
        ("widen", "wide block{}", ""),
    ):
        widths = [str(s[0]) for n, s in shapes.items() if re.fullmatch(rf"{name}(s\.\d+)?\.weight", n) and s]
        kind = words.format("s" if len(widths) > 1 else "")
        article = {0: "no ", 1: "a "}.get(len(widths), "")
        facts[name] = f"{article}{kind}" + (f" ({', '.join(widths)} wide{more})" if widths else "")
    has_scale = any(re.search(r"\.(ls1\.gamma|gamma_1)$", name) for name in shapes)
    facts["layer scale"] = f"{'' if has_scale else 'no '}layer scale"
    tokens, positions = shapes.get("reg_token", (1, 0)), shapes.get("pos_embed", ())
    facts["registers"] = f"{tokens[1] if len(tokens) == 3 else 0} registers"
    if len(positions) == 3:
        facts["positions"] = f"{positions[1]} position embeddings"
    hidden = next((s[0] for n, s in shapes.items() if n.endswith("mlp.fc1.weight") and s), 0)
    facts["hidden"] = f"{hidden} hidden units in an MLP"
    head = next((shapes[n] for n in ("head.weight", "head.fc.weight") if n in shapes), ())
    facts["classes"] = f"{head[0]} classes" if head else "no classifier"
    return facts
