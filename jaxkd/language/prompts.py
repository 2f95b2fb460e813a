"""Prompts that turn anchors into sentences or order candidates, and strict readers of their answers.

The wording is a choice of jaxkd: arXiv 2604.16370 states none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
NamedAnchor = tuple[str, float]  # a word and its probability

_GENERATE = (
    "You turn keywords, which were decoded from a noisy signal, into one English sentence. Some of the keywords may be "
    "wrong. Add no names, dates or numbers that no keyword supports."
)
_RERANK = (
    "You are given keywords, which were decoded from a noisy signal and of which some may be wrong, and numbered "
    "sentences. Order the sentences by how well they agree with the keywords."
)
_REPAIR = (
    "That was not the form that was asked for. Answer again with the JSON object alone, and nothing before or after."
)


def generation_messages(anchors: Sequence[NamedAnchor], exemplars: Sequence[str]) -> list[Message]:
    """Messages that ask for a sentence.

    Args:
      anchors: (word, probability) in reading order.
      exemplars: sentences of the same kind, of the training part.
    """
    examples = "\n".join(f"{i}. {text}" for i, text in enumerate(exemplars, start=1))
    request = (
        f"Keywords in reading order, with their probability: {_listed(anchors)}\n"
        f"Sentences of the same kind, as examples of style alone:\n{examples or '(none)'}\n"
        "Go step by step: which keywords belong together and which look wrong; who does what; then one sentence of 8 "
        "to 25 words.\n"
        'Answer with a JSON object alone: {"kept": [...], "dropped": [...], "reasoning": "...", "sentence": "..."}'
    )
    return [{"role": "system", "content": _GENERATE}, {"role": "user", "content": request}]


def rerank_messages(anchors: Sequence[NamedAnchor], candidates: Sequence[str]) -> list[Message]:
    """Messages that ask for an order of the candidates, numbered from 1."""
    listed = "\n".join(f"{i}. {text}" for i, text in enumerate(candidates, start=1))
    request = (
        f"Keywords in reading order, with their probability: {_listed(anchors)}\n"
        f"Sentences:\n{listed}\n"
        'Answer with a JSON object alone, the best sentence first: {"order": [numbers of all sentences]}'
    )
    return [{"role": "system", "content": _RERANK}, {"role": "user", "content": request}]


def repair_messages(messages: Sequence[Message], answer: str) -> list[Message]:
    """The conversation with an answer that could not be read, and the request to give it again."""
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": _REPAIR}]


def parse_sentence(text: str) -> str | None:
    """The "sentence" of the first JSON object in `text` that has one, in one line; None without."""
    for found in _objects(text):
        sentence = found.get("sentence")
        if isinstance(sentence, str) and sentence.strip():
            return " ".join(sentence.split())
    return None


def parse_order(text: str, count: int) -> list[int] | None:
    """The "order" of the first JSON object in `text` that has one, counted from 0, of `count` candidates.

    Numbers that are named twice count once, those that are left out follow in their own order; None where a number is
    none of the candidates', or nothing is named.
    """
    for found in _objects(text):
        order = found.get("order")
        if not isinstance(order, list) or not order:
            continue
        numbers = [n for n in order if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= count]
        if len(numbers) < len(order):
            return None
        named = list(dict.fromkeys(n - 1 for n in numbers))
        return named + [i for i in range(count) if i not in set(named)]
    return None


def _listed(anchors: Sequence[NamedAnchor]) -> str:
    return ", ".join(f"{word} ({probability:.2f})" for word, probability in anchors) or "(none)"


def _objects(text: str) -> list[dict[str, Any]]:
    """JSON objects that stand in `text`, in order; words and code fences around them are passed over."""
    decoder, found, at = json.JSONDecoder(parse_constant=lambda name: math.nan), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        found.append(value)
    return found
