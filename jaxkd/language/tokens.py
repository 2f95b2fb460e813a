"""Tokenizers of language models: the byte-pair encoding of llama2.c, and `tokenizer.json` of Hugging Face.

Both have `encode(text) -> ids`, which begins with the token of a sequence's begin, and `decode(ids) -> text`.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from jaxkd.errors import WeightSourceError

BEGIN, FIRST_BYTE = 1, 3  # of llama2.c: 0 unknown, 1 begin, 2 end, then the 256 bytes
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>\Z")


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids, the begin of a sequence first."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that follow a prompt, without special tokens."""
        ...


class Llama2cTokenizer:
    """Byte-pair encoding as in llama2.c: the pair with the best score is joined first, the leftmost of equal ones.

    Args:
      pieces: bytes of each token.
      scores: of each token.
    """

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]):
        self._pieces, self._scores = list(pieces), list(scores)
        self._ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`; a blank is put before the text, as in llama2.c."""
        ids: list[int] = []
        for letter in f" {text}" if text else "":
            piece = letter.encode("utf-8", errors="replace")
            found = self._ids.get(piece)
            ids += [FIRST_BYTE + byte for byte in piece] if found is None else [found]
        return [BEGIN, *self._join(ids)]

    def _join(self, ids: list[int]) -> list[int]:
        """Joins neighbours until no pair is a token; a heap of pairs, because prompts have thousands of letters."""
        follows, leads = [*range(1, len(ids)), -1], list(range(-1, len(ids) - 1))
        left: list[int] = list(ids)  # -1 where a token was joined to the one before it
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            j = follows[i]
            joined = self._ids.get(self._pieces[left[i]] + self._pieces[left[j]]) if j >= 0 else None
            if joined is not None:
                heapq.heappush(heap, (-self._scores[joined], i, left[i], left[j], joined))

        for i in range(len(ids)):
            offer(i)
        while heap:
            _, i, first, second, joined = heapq.heappop(heap)
            j = follows[i]
            if left[i] != first or j < 0 or left[j] != second:
                continue  # one of the two was joined to another
            left[i], left[j], follows[i] = joined, -1, follows[j]
            if follows[j] >= 0:
                leads[follows[j]] = i
            offer(i)
            if leads[i] >= 0:
                offer(leads[i])
        return [token for token in left if token >= 0]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`; bytes that are no UTF-8 become the replacement character."""
        content, before = b"", -1
        for token in ids:
            piece = b"" if token < FIRST_BYTE else self._pieces[token]
            byte = _BYTE.match(piece)
            piece = bytes([int(byte[1], 16)]) if byte else piece
            # llama2.c leaves out the blank that `encode` put there.
            content += piece.removeprefix(b" ") if before == BEGIN else piece
            before = token
        return content.decode(errors="replace")


def read_llama2c_tokenizer(path: Path, vocab_size: int) -> Llama2cTokenizer:
    """Reads a tokenizer file of llama2.c: int32 longest piece, then of each token fp32 score, int32 length, bytes.

    Raises:
      WeightSourceError: the file is truncated or does not hold `vocab_size` tokens.
    """
    content, at, pieces, scores = path.read_bytes(), 4, [], []
    try:
        for _ in range(vocab_size):
            score, size = struct.unpack_from("<fi", content, at)
            if not 0 <= size <= len(content) - at - 8:
                raise struct.error
            pieces.append(content[at + 8 : at + 8 + size])
            scores.append(score)
            at += 8 + size
    except struct.error:
        at = -1
    if at != len(content):
        raise WeightSourceError(
            f'"{path}" is no tokenizer of llama2.c with {vocab_size} tokens: it holds '
            f"{len(pieces) if at < 0 else 'more'}. Put the tokenizer that belongs to the weights there."
        )
    return Llama2cTokenizer(pieces, scores)


class HuggingFaceTokenizer:
    """`tokenizer.json` through the package `tokenizers`.

    Args:
      path: of the file.
      begin: id of the token that begins a sequence; None for none.

    Raises:
      WeightSourceError: the package is not installed, or the file cannot be read.
    """

    def __init__(self, path: Path, begin: int | None):
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise WeightSourceError(
                f'"{path}" needs the package tokenizers, which is not installed. Install it: pip install tokenizers.'
            ) from None
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise WeightSourceError(
                f'"{path}" cannot be read as a tokenizer ({error}). Fetch it again from where the weights came.'
            ) from None
        self._begin = begin

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids = self._backend.encode(text).ids  # with the special tokens of the file's own template
        return ids if self._begin is None or ids[:1] == [self._begin] else [self._begin, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        return self._backend.decode(list(ids), skip_special_tokens=True)
