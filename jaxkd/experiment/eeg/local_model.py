"""A Llama on this machine behind the interface of language models, so that sentences need no server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import LanguageModelError, check_range
from jaxkd.language.models import Completion, Message
from jaxkd.models.llama import generate
from jaxkd.weights.fingerprints import fingerprint
from jaxkd.weights.llama import load_llama

LEAST_PLACES = 64  # prompts and answers are padded to this, then to powers of two, so that few programs are compiled


def is_local(source: str) -> bool:
    """Whether a source of a language model is spelt as a path and not as an address."""
    written_as_path = source.endswith(".bin") or source.startswith(("/", ".", "~"))
    return "://" not in source and (written_as_path or Path(source).exists())


class LocalLlama:
    """A Llama that answers in this process (see `LanguageModel`); requests of several threads wait for one another.

    The messages' contents are joined by blank lines, without roles: the chat templates of instructed models are not
    applied. An instructed model answers better behind a server, which knows its template.

    Args:
      source: a `.bin` file of llama2.c, or a Hugging Face folder of a LlamaForCausalLM.
      tokenizer: its file; "" for the one beside the weights.
      dtype: of the weights in memory and of the computation.

    Attributes:
      name: of the file or folder, with the fingerprint of the weights.
      context: most tokens of a prompt and its answer.

    Raises:
      WeightSourceError, WeightMismatchError: see `load_llama`.
    """

    def __init__(self, source: str | Path, *, tokenizer: str | Path = "", dtype: jnp.dtype = jnp.float32):
        self._llama = load_llama(source, tokenizer=tokenizer, dtype=dtype)
        path = Path(source).expanduser().resolve()
        self.name = f"{path.name if path.is_dir() else path.stem}-{fingerprint(self._llama.variables)}"
        self.context = self._llama.model.config.context
        self._stop = jnp.asarray(self._llama.stop or (-1,))
        self._lock = threading.Lock()

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Completion:
        """See `LanguageModel`; an answer ends at the latest where the context does.

        Raises:
          LanguageModelError: the prompt is longer than the context.
          ConfigError: max_tokens or the temperature is out of range.
        """
        check_range("max_tokens", max_tokens, 1, whole=True)
        check_range("temperature", temperature, 0)
        tokenizer = self._llama.tokenizer
        ids = tokenizer.encode("\n\n".join(message["content"] for message in messages))
        if not ids or len(ids) >= self.context:
            raise LanguageModelError(
                f"The prompt does not fit the language model {self.name}: it has {len(ids):,} tokens, and between "
                f"1 and {self.context - 1:,} are read. Use fewer anchors or candidates, or a model with a "
                "larger context.",
                fails="request",
            )
        limit = min(max_tokens, self.context - len(ids))
        prompt = np.zeros(_places(len(ids)), np.int32)
        prompt[: len(ids)] = ids
        with self._lock:
            made, count = jax.device_get(
                generate(
                    self._llama.model,
                    self._llama.variables,
                    jnp.asarray(prompt),
                    jnp.asarray(len(ids)),
                    jnp.asarray(limit),
                    room=_places(limit),
                    stop=self._stop,
                    temperature=jnp.asarray(temperature, jnp.float32),
                    key=jax.random.key(seed),
                )
            )
        new = made[:count].tolist()
        ended = new[-1] in self._llama.stop
        text = tokenizer.decode(new[:-1] if ended else new)
        cuts = [at for at in (text.find(end) for end in stop if end) if at >= 0]
        finished = "stop" if ended or cuts else "length"
        return Completion(text[: min(cuts, default=len(text))], finished, len(ids), len(new), self.name)


def _places(count: int) -> int:
    """The length that `count` tokens are padded to."""
    return max(LEAST_PLACES, 1 << (count - 1).bit_length())
