"""Sentences from a language model: written from anchors, or chosen by ordering candidates.

No function here is given the text that was read. What cannot be read of an answer is asked for once more and then
counts as failed; no error ever becomes part of a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxkd.errors import LanguageModelError
from jaxkd.language import prompts
from jaxkd.language.models import Completion, LanguageModel, complete_all
from jaxkd.language.prompts import Message, NamedAnchor

LOCAL_MODES, MODEL_MODES = ("template", "retrieve"), ("generate", "rerank")  # ways to a sentence
MAX_TOKENS = 400
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """Answer for one reading.

    Attributes:
      sentence: None where it failed.
      order: of the candidates, best first; () where none were ordered.
      reason: of the failure, else "".
      model: that answered, by its own name.
      tokens: of all its answers, as far as it counts them.
    """

    sentence: str | None
    order: tuple[int, ...] = ()
    reason: str = ""
    model: str = ""
    tokens: int = 0


def generate_sentences(
    model: LanguageModel,
    anchors: Sequence[Sequence[NamedAnchor]],
    exemplars: Sequence[Sequence[str]],
    *,
    concurrency: int = 4,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[Written]:
    """A sentence for each reading from its anchors.

    Args:
      model: that writes.
      anchors: of each reading, in reading order.
      exemplars: training sentences for each reading.
      concurrency: requests at once.
      seed: sent with each request.
      on_progress: `(answers, requests)`.
    """
    requests = [prompts.generation_messages(a, e) for a, e in zip(anchors, exemplars, strict=True)]
    parsed = _asked(model, requests, [prompts.parse_sentence] * len(requests), concurrency, seed, on_progress)
    return [Written(sentence=value, **facts) for value, facts in parsed]


def rerank_candidates(
    model: LanguageModel,
    anchors: Sequence[Sequence[NamedAnchor]],
    candidates: Sequence[Sequence[str]],
    *,
    concurrency: int = 4,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[Written]:
    """The candidates of each reading in the order of a model, whose first is the sentence.

    Args:
      model: that orders.
      anchors: of each reading, in reading order.
      candidates: sentences for each reading.
      concurrency, seed, on_progress: as in `generate_sentences`.
    """
    requests = [prompts.rerank_messages(a, c) for a, c in zip(anchors, candidates, strict=True)]
    readers = [partial(prompts.parse_order, count=len(own)) for own in candidates]
    parsed = _asked(model, requests, readers, concurrency, seed, on_progress)
    return [
        Written(sentence=None if order is None else own[order[0]], order=tuple(order or ()), **facts)
        for (order, facts), own in zip(parsed, candidates, strict=True)
    ]


def _asked(
    model: LanguageModel,
    requests: Sequence[list[Message]],
    readers: Sequence[Callable[[str], Any]],
    concurrency: int,
    seed: int,
    on_progress: Progress | None,
) -> list[tuple[Any, dict[str, Any]]]:
    """(what was read of the answer or None, facts of `Written`) of each request, after at most one repair."""
    settings: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "seed": seed, "concurrency": concurrency}
    answers = complete_all(model, requests, on_progress=on_progress, **settings)
    found = [_read(answer, reader) for answer, reader in zip(answers, readers, strict=True)]
    unread = [(i, answers[i]) for i, (value, _) in enumerate(found) if value is None]
    texts = {i: answer.text for i, answer in unread if isinstance(answer, Completion)}
    repairs = [prompts.repair_messages(requests[i], text) for i, text in texts.items()]
    repaired = complete_all(model, repairs, works=True, **settings)
    for i, answer in zip(texts, repaired, strict=True):
        if isinstance(answer, LanguageModelError):  # the conversation is longer now, perhaps too long
            continue
        value, facts = _read(answer, readers[i])
        found[i] = value, {**facts, "tokens": facts["tokens"] + found[i][1]["tokens"]}
    return found


def _read(answer: Completion | LanguageModelError, reader: Callable[[str], Any]) -> tuple[Any, dict[str, Any]]:
    if isinstance(answer, LanguageModelError):
        return None, {"reason": str(answer), "model": "", "tokens": 0}
    facts = {"model": answer.model, "tokens": max(answer.completion_tokens, 0), "reason": ""}
    value = reader(answer.text)
    if value is None:
        cut = "the answer was cut off" if answer.finish_reason == "length" else "the answer has not the form"
        facts["reason"] = cut if answer.text.strip() else "the answer is empty"
    return value, facts
