"""Names of the outputs of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jaxkd.weights import Network


@cache
def imagenet1k() -> dict[str, str]:
    """Folder name -> first lemma of WordNet, of the 1,000 classes of ImageNet-1k in the order of their labels.

    Of two classes with the same first lemma, "crane", each has a word of explanation.
    """
    lines = Path(__file__).with_name("imagenet1k.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def output_names(network: Network, *, of_run: bool) -> tuple[str, ...]:
    """A name for each output of a classifier; () for a network that classifies nothing.

    They are those that the weights record; ImageNet's folder names (n01440764) become words. Weights that record none
    and have ImageNet-1k's 1,000 classes by their tag have its names, and all others the indices "0", "1", ...

    Args:
      network: with the class names that its source records.
      of_run: whether the weights are those of a work directory, about which a tag says nothing.
    """
    count = network.num_classes
    if network.spec.task != "classification" or not count:
        return ()
    recorded = readable(network.class_names)
    if len(recorded) == count:
        return recorded
    if count == network.spec.num_classes == len(imagenet1k()) and not of_run:
        return tuple(imagenet1k().values())
    return tuple(map(str, range(count)))


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, in words where all of them are folder names of ImageNet-1k."""
    words = imagenet1k()
    return tuple(words[n] for n in names) if all(n in words for n in names) else tuple(names)
