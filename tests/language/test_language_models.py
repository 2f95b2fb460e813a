"""Language models: a server that misbehaves, the cache of answers, prompts and strict readers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import Server, chat

from jaxkd.errors import ConfigError, DataError, LanguageModelError
from jaxkd.language import prompts
from jaxkd.language.models import CachedModel, OpenAiCompatible, complete_all
from jaxkd.language.sentences import generate_sentences, rerank_candidates

ROOT = Path(__file__).parents[2]
SENTENCE = '{"kept": ["ford"], "sentence": "Ford  founded a company."}'


@pytest.fixture
def serve():
    servers = []

    def start(script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def client(server, **options):
    return OpenAiCompatible(server.url, "tiny", **{"wait": 0.01, "timeout": 2.0, **options})


HELLO = [{"role": "user", "content": "Hello"}]


def test_an_answer_and_what_is_sent(serve):
    server = serve(lambda i, body: chat("Hi."))
    found = client(server, extra={"grammar": "root"}).complete(HELLO, max_tokens=9, seed=4, stop=["\n"])
    assert (found.text, found.finish_reason, found.model) == ("Hi.", "stop", "tiny-1")
    assert (found.prompt_tokens, found.completion_tokens) == (7, 3)
    assert server.requests == [
        {
            "model": "tiny",
            "messages": HELLO,
            "max_tokens": 9,
            "temperature": 0.0,
            "seed": 4,
            "stop": ["\n"],
            "grammar": "root",
        }
    ]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "first",
    [
        (429, "{}", {"Retry-After": "0.2"}),
        (500, "oh", {}),
        (503, "{}", {"Retry-After": "soon"}),
        None,
        "no JSON",
        '{"choices": []}',
        (200, chat("cut")[:30], {"Content-Length": "500"}),
    ],
    ids=["429", "500", "503", "broken", "no-json", "no-choice", "cut-off"],
)
def test_what_may_pass_is_tried_again(serve, first):
    first = (200, None, {}) if first is None else first
    server = serve(lambda i, body: first if i == 0 else chat("Hi."))
    begin = time.perf_counter()
    assert client(server).complete(HELLO, max_tokens=9).text == "Hi."
    assert len(server.requests) == 2
    if isinstance(first, tuple) and first[0] == 429:
        assert time.perf_counter() - begin >= 0.2


def test_a_slow_server_is_given_up(serve):
    server = serve(lambda i, body: time.sleep(0.5) or chat("late"))
    with pytest.raises(LanguageModelError, match=r"no answer in 2 tries \(no answer within 0.1 seconds\)"):
        client(server, timeout=0.1, retries=1).complete(HELLO, max_tokens=9)


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (400, "the request exceeds the available context size", "longer than the context"),
        (401, "bad key", "--llm-key-variable"),
        (404, "no such model", "name of the model"),
        (422, "max_tokens", "status 422: max_tokens"),
    ],
)
def test_a_refusal_is_said_once(serve, status, message, said):
    server = serve(lambda i, body: (status, json.dumps({"error": {"message": message}}), {}))
    with pytest.raises(LanguageModelError, match=said):
        client(server).complete(HELLO, max_tokens=9)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_and_bad_addresses():
    with pytest.raises(LanguageModelError, match=r"127\.0\.0\.1:9/v1 gave no answer in 2 tries"):
        OpenAiCompatible("http://127.0.0.1:9/v1", "x", retries=1, wait=0.01).complete(HELLO, max_tokens=9)
    for url in ("localhost:8080", "ftp://host/v1", "http://"):
        with pytest.raises(ConfigError, match="no address"):
            OpenAiCompatible(url, "x")
    with pytest.raises(ConfigError, match="password") as error:
        OpenAiCompatible("http://me:secret@host/v1", "x")
    assert "secret" not in str(error.value)


def test_the_key_comes_from_a_variable_and_stands_nowhere(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-12345")
    server = serve(lambda i, body: chat("Hi.") if i == 0 else (401, '{"error": "wrong"}', {}))
    model = CachedModel(client(server, key_variable="MY_KEY"), tmp_path / "answers.jsonl")
    model.complete(HELLO, max_tokens=9)
    assert server.headers[0]["Authorization"] == "Bearer sk-12345"
    with pytest.raises(LanguageModelError) as error:
        model.complete(HELLO, max_tokens=8)
    assert "sk-12345" not in str(error.value) + (tmp_path / "answers.jsonl").read_text() + json.dumps(server.requests)
    with pytest.raises(ConfigError, match="OTHER_KEY"):
        client(server, key_variable="OTHER_KEY")


def test_answers_are_kept(serve, tmp_path):
    server, path = serve(lambda i, body: chat(f"answer {i}")), tmp_path / "answers.jsonl"
    first = CachedModel(client(server), path)
    assert first.complete(HELLO, max_tokens=9).text == first.complete(HELLO, max_tokens=9).text == "answer 0"
    assert first.complete(HELLO, max_tokens=8).text == "answer 1"
    again = CachedModel(client(server), path)
    assert again.complete(HELLO, max_tokens=8).text == "answer 1" and len(server.requests) == 2
    with path.open("ab") as file:
        file.write(b'{"key": "half of a li')
    assert CachedModel(client(server), path).complete(HELLO, max_tokens=9).text == "answer 0"
    assert path.read_bytes().endswith(b"}\n")
    with path.open("ab") as file:
        file.write(b"not an answer\n")
    with pytest.raises(DataError, match="Line 3"):
        CachedModel(client(server), path)


KILLED = """
import sys
from pathlib import Path
from jaxkd.language.models import CachedModel, OpenAiCompatible, complete_all
model = CachedModel(OpenAiCompatible(sys.argv[1], "tiny"), Path(sys.argv[2]))
complete_all(model, [[{"role": "user", "content": str(i)}] for i in range(20)], concurrency=1, max_tokens=5)
"""


def test_kill_9_and_again_asks_nothing_twice(serve, tmp_path):
    server = serve(lambda i, body: time.sleep(0.02) or chat(body["messages"][0]["content"]))
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path / "answers.jsonl")]
    process = subprocess.Popen(command, cwd=ROOT)
    while len(server.requests) < 6:
        time.sleep(0.005)
    process.kill()
    process.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    asked = [body["messages"][0]["content"] for body in server.requests]
    # the answer that was under way at the kill is lost at most
    assert set(asked) == {str(i) for i in range(20)} and len(asked) <= 21


def test_equal_requests_at_once_are_asked_once(serve, tmp_path):
    server = serve(lambda i, body: time.sleep(0.05) or chat(f"answer {i}"))
    model = CachedModel(client(server), tmp_path / "answers.jsonl")
    other = [{"role": "user", "content": "Other"}]
    found = complete_all(model, [other, HELLO, HELLO, HELLO], concurrency=3, max_tokens=5)
    assert [f.text for f in found] == ["answer 0", *["answer 1"] * 3] and len(server.requests) == 2


def test_many_requests_in_order_with_failures_as_values(serve):
    def script(i, body):
        text = body["messages"][0]["content"]
        time.sleep(0.02 if text == "1" else 0)
        return (422, '{"error": "no"}', {}) if text == "3" else chat(text)

    server, seen = serve(script), []
    requests = [[{"role": "user", "content": str(i)}] for i in range(6)]
    found = complete_all(
        client(server), requests, concurrency=3, on_progress=lambda *done: seen.append(done), max_tokens=5
    )
    assert [f.text if i != 3 else type(f) for i, f in enumerate(found)] == ["0", "1", "2", LanguageModelError, "4", "5"]
    assert seen[-1] == (6, 6)
    with pytest.raises(LanguageModelError, match="422"):
        complete_all(client(server), requests[3:], max_tokens=5)


def test_a_prompt_that_is_too_long_fails_alone_and_a_server_that_goes_ends_all(serve, tmp_path):
    def script(i, body):
        text = body["messages"][0]["content"]
        if text == "gone":
            return 200, None, {}
        return (400, '{"error": {"message": "exceeds the context"}}', {}) if text == "long" else chat(text)

    server, asked = serve(script), lambda *texts: [[{"role": "user", "content": text}] for text in texts]
    found = complete_all(client(server), asked("long", "1"), max_tokens=5)
    assert (found[0].fails, found[1].text) == ("request", "1")
    cached = CachedModel(client(server, retries=1), tmp_path)
    with pytest.raises(LanguageModelError, match=r"no answer in 2 tries \(.*answers that came are kept"):
        complete_all(cached, asked("1", "2", "gone", *"34567"), concurrency=1, max_tokens=5)
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 2
    assert [body["messages"][0]["content"] for body in server.requests[-4:]] == ["1", "2", "gone", "gone"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SENTENCE, "Ford founded a company."),
        (f"Let me think {{about it}}.\n```json\n{SENTENCE}\n```", "Ford founded a company."),
        ('{"reasoning": "x"} {"sentence": "Second one."}', "Second one."),
        ('{"sentence": ""}', None),
        ('{"sentence": 5}', None),
        ('{"sentence": "cut of', None),
        ("Ford founded a company.", None),
        ("", None),
    ],
)
def test_the_sentence_of_an_answer(text, sentence):
    assert prompts.parse_sentence(text) == sentence


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('{"order": [3, 1, 2]}', [2, 0, 1]),
        ('Sure: {"order": [2, 2]}', [1, 0, 2]),
        ('{"order": [4]}', None),
        ('{"order": ["a"]}', None),
        ('{"order": [true]}', None),
        ('{"order": []}', None),
        ("[3, 1, 2]", None),
    ],
)
def test_the_order_of_an_answer(text, order):
    assert prompts.parse_order(text, 3) == order


def test_sentences_repairs_and_failures(serve):
    def script(i, body):
        text = body["messages"][1]["content"]
        repaired = len(body["messages"]) > 2
        if "broken" in text:
            return chat("no form", finish="length")
        if "growing" in text:
            return (400, '{"error": {"message": "exceeds the context"}}', {}) if repaired else chat("Here: Ford.")
        if "mended" in text and not repaired:
            return chat("Here it is: Ford.")
        return chat('{"sentence": "A plain sentence."}')

    server = serve(script)
    anchors = [[("ford", 0.5)], [("mended", 0.25)], [("broken", 0.1)], [], [("growing", 0.1)]]
    found = generate_sentences(client(server), anchors, [["An example."]] * 5, concurrency=2)
    assert [f.sentence for f in found] == ["A plain sentence.", "A plain sentence.", None, "A plain sentence.", None]
    assert found[4].reason == "the answer has not the form"
    assert found[2].reason == "the answer was cut off" and found[0].model == "tiny-1" and found[1].tokens == 6
    sent = json.dumps(server.requests)
    assert "ford (0.50)" in sent and "An example." in sent and len(server.requests) == 8


def test_reranking(serve):
    server = serve(lambda i, body: chat('{"order": [2]}'))
    found = rerank_candidates(client(server), [[("ford", 0.5)]], [["first", "second", "third"]])
    assert found[0].sentence == "second" and found[0].order == (1, 0, 2)
