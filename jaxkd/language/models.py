"""Language models behind one method: an OpenAI-compatible server, and a cache on disk in front of any model.

    model = CachedModel(OpenAiCompatible("http://127.0.0.1:8080/v1", "llama"), Path("answers.jsonl"))
    model.complete([{"role": "user", "content": "Hello"}], max_tokens=20).text

Any server with POST /chat/completions works: llama.cpp, vLLM, Ollama, a cloud. Only the messages are sent. The key, if
there is one, comes from a named environment variable and stands in no message, file or error.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxkd.errors import ConfigError, DataError, LanguageModelError, check_range

Message = dict[str, str]
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0  # seconds between two tries
ANSWERS = "answers.jsonl"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
      text: of the first choice.
      finish_reason: "stop", or "length" where it was cut off.
      prompt_tokens, completion_tokens: as the server counts them; -1 where it does not.
      model: the name that the server returned.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str


class LanguageModel(Protocol):
    """Answers a conversation.

    Attributes:
      name: of the model, part of a cache's key.
    """

    name: str

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Completion:
        """The answer to `messages`, dicts of "role" and "content"; raises LanguageModelError where there is none."""
        ...


@dataclass
class OpenAiCompatible:
    """A server with the chat completions of OpenAI.

    Attributes:
      base_url: such as "http://127.0.0.1:8080/v1".
      name: of the model at the server.
      key_variable: environment variable that holds the key; "" sends none.
      timeout: seconds for an answer.
      retries: further tries after 429, 5xx and broken connections.
      wait: seconds before the first of them, doubled each time and drawn at random from half of it on; `Retry-After`
        of the server is kept.
      extra: further fields of the request, such as {"grammar": ...} of llama.cpp.
    """

    base_url: str
    name: str
    key_variable: str = ""
    timeout: float = 120.0
    retries: int = 5
    wait: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f'"{self.base_url}" is no address of a language model. Give one such as "http://127.0.0.1:8080/v1".'
            )
        if parts.username or parts.password:
            raise ConfigError(
                "The address of the language model holds a password. Name a variable for the key instead."
            )
        check_range("timeout", self.timeout, above=0)
        check_range("retries", self.retries, 0, whole=True)
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ConfigError(
                f"The environment variable {self.key_variable} with the key of the language model is not set. Set it, "
                "or name another."
            )
        # A proxy of the environment cannot reach this machine's own servers.
        handlers = [urllib.request.ProxyHandler({})] if parts.hostname in LOOPBACK else []
        self._opener = urllib.request.build_opener(*handlers)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Completion:
        """See `LanguageModel`."""
        body = {
            "model": self.name,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            **({"stop": list(stop)} if stop else {}),
            **self.extra,
        }
        trouble = _TryAgain("")
        for attempt in range(self.retries + 1):
            if attempt:
                wait = self.wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                time.sleep(min(max(wait, trouble.wait), LONGEST_WAIT))
            try:
                return self._answer(self._post(body))
            except _TryAgain as error:
                trouble = error
        raise LanguageModelError(
            f"The language model at {self.base_url} gave no answer in {self.retries + 1} tries ({trouble}). Start the "
            "same command again when it runs; answers that came are kept.",
            fails=trouble.fails,
        )

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        url = self.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError:
            raise _TryAgain(f"no answer within {self.timeout:g} seconds") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _TryAgain(f"no answer within {self.timeout:g} seconds") from None
            raise _TryAgain(str(error.reason), fails="all") from None
        except (ConnectionError, http.client.HTTPException) as error:
            gone = isinstance(error, ConnectionError)  # and not an answer that was cut off
            raise _TryAgain(
                f"the connection broke: {type(error).__name__}", fails="all" if gone else "perhaps"
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> LanguageModelError:
        """The error for an HTTP status that is no success."""
        text = _message_of(error)
        if error.code in RETRIED:
            asked = error.headers.get("Retry-After", "")
            return _TryAgain(f"status {error.code}", float(asked) if asked.replace(".", "", 1).isdigit() else 0.0)
        if error.code == 400 and "context" in text:
            return LanguageModelError(
                f"The prompt is longer than the context of the model at {self.base_url}: {text[:200]}. Start the "
                "server with a larger context, or use fewer anchors or candidates.",
                fails="request",
            )
        advice = {
            401: "Name the environment variable that holds the key (--llm-key-variable).",
            403: "The key does not allow this model.",
            404: "Check the address, which ends in /v1 at most servers, and the name of the model.",
        }
        return LanguageModelError(
            f'The language model "{self.name}" at {self.base_url} refused the request with status {error.code}: '
            f"{text[:200] or 'no reason given'}. {advice.get(error.code, 'Correct the request.')}",
            fails="all" if error.code in advice else "perhaps",
        )

    def _answer(self, content: bytes) -> Completion:
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            usage = answer.get("usage") or {}
            return Completion(
                text=str(choice["message"].get("content") or ""),
                finish_reason=str(choice.get("finish_reason") or ""),
                prompt_tokens=int(usage.get("prompt_tokens", -1)),
                completion_tokens=int(usage.get("completion_tokens", -1)),
                model=str(answer.get("model") or self.name),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _TryAgain("an answer that is no chat completion") from None


class _TryAgain(LanguageModelError):
    """A failure that may pass; `wait` is after how many seconds, where the server said so."""

    def __init__(self, message: str, wait: float = 0.0, *, fails: str = "perhaps"):
        super().__init__(message, fails=fails)
        self.wait = wait


def _message_of(error: urllib.error.HTTPError) -> str:
    """The server's reason in one line."""
    try:
        content = error.read()
        found = json.loads(content)
        found = found.get("error", found)
        text = found.get("message", "") if isinstance(found, dict) else str(found)
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        text = ""
    return " ".join(str(text).split())


class CachedModel:
    """A model whose answers are kept in a file, a JSON line each; a request that was answered is not made again.

    Nor is one that is under way: equal requests wait for its answer.

    A line is written in one piece once the answer is there, so that a kill loses at most the answers under way; a last
    line that was cut off is dropped.

    Args:
      model: that answers.
      path: of the file, made when the first answer comes; in a folder it is answers.jsonl.
    """

    def __init__(self, model: LanguageModel, path: Path):
        self.name, self._model = model.name, model
        self._path = path / ANSWERS if path.is_dir() else path
        self._lock = threading.Lock()
        self._under_way: dict[str, threading.Lock] = {}
        self._known = self._read()

    def complete(self, messages: Sequence[Message], **parameters: Any) -> Completion:
        """See `LanguageModel`."""
        settings = {"extra": getattr(self._model, "extra", {}), **parameters}
        content = json.dumps([self.name, list(messages), settings], sort_keys=True, default=list)
        key = hashlib.sha256(content.encode()).hexdigest()
        with self._lock:
            own = self._under_way.setdefault(key, threading.Lock())
        with own:
            if key not in self._known:
                self._keep(key, self._model.complete(messages, **parameters))
            return self._known[key]

    def _keep(self, key: str, answer: Completion) -> None:
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n"
        with self._lock:
            self._known[key] = answer
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())

    def _read(self) -> dict[str, Completion]:
        known: dict[str, Completion] = {}
        if not self._path.exists():
            return known
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a kill in the middle of a line
            os.truncate(self._path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                values = json.loads(line)
                key = values.pop("key")
                known[key] = Completion(**values)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(
                    f'Line {number} of "{self._path}" is no answer of a language model. Delete that line, or name '
                    "another file."
                ) from None
        return known


def complete_all(
    model: LanguageModel,
    requests: Sequence[Sequence[Message]],
    *,
    concurrency: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
    works: bool = False,
    **parameters: Any,
) -> list[Completion | LanguageModelError]:
    """Answers in the order of the requests, several at a time; a failure stands in the place of its answer.

    A failure that every further request would meet is raised: the server cannot be reached any more, or refuses the key
    or the model. The first request is made alone, and its failure is raised unless it is of this request alone, such as
    a prompt that is too long.

    Args:
      model: that answers.
      requests: lists of messages.
      concurrency: requests at once.
      on_progress: `(answers so far, requests)`.
      works: the model has answered before, so that the first request may fail as every other.
      **parameters: of `LanguageModel.complete`.

    Raises:
      LanguageModelError: see above.
    """
    check_range("concurrency", concurrency, 1, whole=True)
    if not requests:
        return []
    found: list[Completion | LanguageModelError | None] = [None] * len(requests)

    ended = threading.Event()

    def answer(i: int) -> None:
        if ended.is_set():
            return
        try:
            found[i] = model.complete(requests[i], **parameters)
        except LanguageModelError as error:
            if error.fails == "all" or (i == 0 and not works and error.fails != "request"):
                ended.set()
                raise
            found[i] = error

    answer(0)
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        jobs = [pool.submit(answer, i) for i in range(1, len(requests))]
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), start=2):
                job.result()
                if on_progress is not None:
                    on_progress(done, len(requests))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [answered for answered in found if answered is not None]  # all of them
