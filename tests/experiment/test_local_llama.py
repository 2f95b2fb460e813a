"""The local Llama as a language model: answers, ends, threads, the cache in front of it, and limits."""

from __future__ import annotations

import pytest
from llama_files import random_arrays, write_llama2c

from jaxkd.errors import ConfigError, LanguageModelError
from jaxkd.experiment.eeg.local_model import LocalLlama, is_local
from jaxkd.language.models import CachedModel, complete_all


def asked(*contents):
    return [{"role": "user", "content": text} for text in contents]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return LocalLlama(write_llama2c(random_arrays(), tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def stories(request):
    folder = request.config.rootpath.parent / "shared/data/eeg/tiny_lm"
    if not folder.is_dir():
        pytest.skip("the small language model stories260K is not in ../shared/data/eeg/tiny_lm")
    return LocalLlama(folder / "stories260K.bin")


def test_stories260k_continues_a_prompt_as_llama_cpp_does(stories):
    answer = stories.complete(asked("The dog and the park."), max_tokens=50, stop=(" They have",))
    expected = " They like to play with their toys. They like to play with their toys."
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == (expected, "stop", 10)
    assert answer.model == stories.name and stories.name.startswith("stories260K-")
    cut = stories.complete(asked("The dog and the park."), max_tokens=5)
    assert cut.finish_reason == "length" and cut.completion_tokens == 5 and expected.startswith(cut.text)


def test_messages_are_joined_by_blank_lines(tiny):
    together = tiny.complete(asked("a\n\nb"), max_tokens=4)
    apart = tiny.complete([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], max_tokens=4)
    assert apart == together and apart.prompt_tokens == 6 - 1  # begin, " a", two line ends, "b"


def test_an_answer_ends_at_an_end_token_which_is_no_text(tmp_path):
    arrays = random_arrays()
    arrays["output"][:] = 0.0
    arrays["output"][2] = 9.0  # the end, or unknown where the sum of the features is negative
    arrays["final"][:] = 0.0  # all logits are 0, and the first of equal ones is token 0
    never = LocalLlama(write_llama2c(arrays, tmp_path / "never")).complete(asked("a"), max_tokens=3)
    assert (never.text, never.finish_reason, never.completion_tokens) == ("", "length", 3)
    arrays["final"][0], arrays["output"][2] = 1.0, 0.0
    arrays["embedding"][:, 0] = 50.0
    arrays["output"][2, 0] = 9.0
    ended = LocalLlama(write_llama2c(arrays, tmp_path / "ends")).complete(asked("a"), max_tokens=3)
    assert (ended.text, ended.finish_reason, ended.completion_tokens) == ("", "stop", 1)


def test_answers_of_several_threads_are_those_of_one(tiny, tmp_path):
    requests = [asked("a" * (1 + i % 5)) for i in range(12)]
    alone = [tiny.complete(request, max_tokens=6) for request in requests]
    cached = CachedModel(tiny, tmp_path / "answers.jsonl")
    assert complete_all(cached, requests, concurrency=4, max_tokens=6) == alone
    assert len({answer.text for answer in alone}) > 1

    class Refuses:
        name = tiny.name

        def complete(self, *args, **parameters):
            raise LanguageModelError("asked twice")

    kept = CachedModel(Refuses(), tmp_path / "answers.jsonl")
    assert complete_all(kept, requests, concurrency=4, max_tokens=6) == alone


def test_the_name_tells_other_weights_apart(tiny, tmp_path):
    arrays = random_arrays()
    arrays["w2"][1, 0, 0] += 1e-3
    other = LocalLlama(write_llama2c(arrays, tmp_path))
    assert other.name != tiny.name and other.name.split("-")[0] == tiny.name.split("-")[0] == "tiny"


def test_draws_repeat_with_their_seed(tiny):
    def drawn(seed, temperature=3.0):
        return tiny.complete(asked("a"), max_tokens=12, temperature=temperature, seed=seed).text

    assert drawn(0) == drawn(0) and len({drawn(seed) for seed in range(4)}) == 4
    assert drawn(0, 0.0) == drawn(1, 0.0)


def test_the_context_bounds_prompts_and_answers(tiny):
    longest = tiny.complete(asked("b" * 29), max_tokens=100)  # begin, blank, 29 letters: 31 of 32 places
    assert (longest.prompt_tokens, longest.completion_tokens, longest.finish_reason) == (31, 1, "length")
    with pytest.raises(LanguageModelError, match=r"it has 32 tokens, and between 1 and 31 are read\. Use fewer"):
        tiny.complete(asked("b" * 30), max_tokens=1)
    for wrong in ({"max_tokens": 0}, {"max_tokens": 1, "temperature": -1.0}):
        with pytest.raises(ConfigError):
            tiny.complete(asked("a"), **wrong)


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("http://127.0.0.1:8080/v1", False),
        ("127.0.0.1:8080", False),
        ("http://host/model.bin", False),
        ("model.bin", True),
        ("./llama", True),
        ("/models/llama", True),
        ("tests", True),
    ],
)
def test_paths_and_addresses(source, local, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert is_local(source) is local
