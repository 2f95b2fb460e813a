"""Llamas: golden logits and text, both file formats against a NumPy forward pass, the cache, and damaged files."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_files import (
    CONTEXT,
    DEPTH,
    DIM,
    HEADS,
    HIDDEN,
    KV,
    VOCAB,
    random_arrays,
    write_llama2c,
    write_tokenizer,
)
from safetensors.numpy import save_file

from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.language.tokens import Llama2cTokenizer, read_llama2c_tokenizer
from jaxkd.models.llama import Llama, LlamaConfig, empty_cache, generate
from jaxkd.weights.llama import load_llama


def numpy_logits(arrays, tokens, theta=10000.0, eps=1e-5):
    """(T,) ids -> (T, VOCAB), token by token, in float64; the output is a matrix of its own."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    head_dim = a["wq"].shape[1] // HEADS
    past, out = [([], []) for _ in range(DEPTH)], []

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + eps) * scale

    def turn(x, place):
        x = x.reshape(-1, head_dim // 2, 2)
        x = x[..., 0] + 1j * x[..., 1]
        x = x * np.exp(1j * place * theta ** (-np.arange(0, head_dim, 2) / head_dim))
        return np.stack([x.real, x.imag], -1).reshape(-1, head_dim)

    for place, token in enumerate(tokens):
        x = a["embedding"][token]
        for i, (keys, values) in enumerate(past):
            y = norm(x, a["att"][i])
            query = turn(a["wq"][i] @ y, place)
            keys.append(turn(a["wk"][i] @ y, place))
            values.append((a["wv"][i] @ y).reshape(KV, head_dim))
            mixed = []
            for head in range(HEADS):
                own = head // (HEADS // KV)
                scores = np.array([query[head] @ key[own] for key in keys]) / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                mixed.append(sum(w * value[own] for w, value in zip(weights / weights.sum(), values, strict=True)))
            x = x + a["wo"][i] @ np.concatenate(mixed)
            y = norm(x, a["ffn"][i])
            gate = a["w1"][i] @ y
            x = x + a["w2"][i] @ (gate / (1 + np.exp(-gate)) * (a["w3"][i] @ y))
        out.append(a["output"] @ norm(x, a["final"]))
    return np.stack(out)


def hugging_face(arrays):
    """The same arrays under Hugging Face's names; heads of query and key hold channels 0, 2, 4 ... 1, 3, 5 ..."""
    head_dim = arrays["wq"].shape[1] // HEADS
    order = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    found = {"model.embed_tokens.weight": arrays["embedding"], "model.norm.weight": arrays["final"]}
    found["lm_head.weight"] = arrays["output"]
    names = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj"}
    names |= {"w3": "mlp.up_proj", "att": "input_layernorm", "ffn": "post_attention_layernorm"}
    for i in range(DEPTH):
        for name, other in names.items():
            found[f"model.layers.{i}.{other}.weight"] = arrays[name][i]
        for name, other in {"wq": "q_proj", "wk": "k_proj"}.items():
            rows = arrays[name][i].reshape(-1, head_dim, DIM)[:, order].reshape(-1, DIM)
            found[f"model.layers.{i}.self_attn.{other}.weight"] = np.ascontiguousarray(rows)
    return found


def write_folder(arrays, folder, *, sharded=False, config=(), tokenizer=True):
    folder.mkdir()
    content = {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": DIM, "rope_theta": 500.0}
    content |= {"intermediate_size": HIDDEN, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    content |= {"num_key_value_heads": KV, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-3}
    content |= {"bos_token_id": 1, "eos_token_id": [2, 7], "head_dim": arrays["wq"].shape[1] // HEADS}
    (folder / "config.json").write_text(json.dumps(content | dict(config)))
    found = hugging_face(arrays)
    if not sharded:
        save_file(found, folder / "model.safetensors")
    else:
        names = sorted(found)
        weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file({name: found[name] for name in names if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if tokenizer:
        tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
        words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.add_special_tokens(["<s>", "</s>"])
        backend.save(str(folder / "tokenizer.json"))
    return folder


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens):
    return model.apply(variables, tokens[None])[0][0]


def logits_of(loaded, tokens):
    padded = np.zeros(9, np.int32)  # one program; a token reads none of those behind it
    padded[: len(tokens)] = tokens
    return np.asarray(apply(loaded.model, loaded.variables, padded))[: len(tokens)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_llama(write_llama2c(random_arrays(), tmp_path_factory.mktemp("llama")))


TOKENS = np.random.default_rng(1).integers(0, VOCAB, 9)


def test_a_llama2c_file_gives_the_logits_of_numpy(tmp_path):
    arrays = random_arrays()
    loaded = load_llama(write_llama2c(arrays, tmp_path))
    np.testing.assert_allclose(logits_of(loaded, TOKENS), numpy_logits(arrays, TOKENS), atol=1e-4)
    assert loaded.stop == (1, 2)
    loaded = load_llama(write_llama2c(arrays, tmp_path, tied=True))
    expected = numpy_logits(arrays | {"output": arrays["embedding"]}, TOKENS)
    np.testing.assert_allclose(logits_of(loaded, TOKENS), expected, atol=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hugging_face_folder_gives_the_logits_of_numpy(tmp_path, sharded):
    arrays = random_arrays(head_dim=6)  # not embed_dim / heads
    loaded = load_llama(write_folder(arrays, tmp_path / "folder", sharded=sharded))
    expected = numpy_logits(arrays, TOKENS, theta=500.0, eps=1e-3)
    np.testing.assert_allclose(logits_of(loaded, TOKENS), expected, atol=1e-4)
    assert loaded.stop == (2, 7)
    assert loaded.tokenizer.encode("w5 w9") == [1, 5, 9]
    assert loaded.tokenizer.decode([5, 9, 2]) == "w5 w9"


def test_the_cache_changes_no_logits(loaded):
    read = jax.jit(loaded.model.apply)
    whole, cache = logits_of(loaded, TOKENS), empty_cache(loaded.model.config, 1, 16)
    first, cache = read(loaded.variables, TOKENS[None, :4], cache)
    parts = [first]
    for i in range(4, 9):
        logits, cache = read(loaded.variables, TOKENS[None, i : i + 1], cache, i)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[0], whole, atol=1e-5)


def test_generation_is_greedy_ends_at_a_stop_id_and_reads_no_padding(loaded):
    ids = list(TOKENS[:3])
    for _ in range(6):
        ids.append(int(logits_of(loaded, np.array(ids))[-1].argmax()))
    expected = [int(i) for i in ids[3:]]

    def continued(padding, stop):
        prompt = jnp.asarray([*TOKENS[:3], *[padding] * 5])
        made, count = generate(loaded.model, loaded.variables, prompt, 3, 6, room=8, stop=jnp.asarray([stop]))
        return made.tolist(), int(count)

    assert continued(0, -1) == continued(17, -1) == ([*expected, -1, -1], 6)
    length = expected.index(expected[2]) + 1
    assert continued(0, expected[2]) == ([*expected[:length], *[-1] * (8 - length)], length)


def test_draws_follow_the_key_and_the_probabilities(loaded):
    logits = logits_of(loaded, TOKENS)[-1] / 2.0

    def draw(seed):
        options = {"room": 1, "temperature": 2.0, "key": jax.random.key(seed)}
        return generate(loaded.model, loaded.variables, jnp.asarray(TOKENS), 9, 1, **options)[0][0]

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(3000)))
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    top = np.argsort(-expected)[:3]
    share = np.array([(drawn == i).mean() for i in top])
    np.testing.assert_allclose(share, expected[top], atol=4 * np.sqrt(0.25 / 3000))


@pytest.fixture(scope="module")
def stories(request):
    folder = request.config.rootpath.parent / "shared/data/eeg/tiny_lm"
    if not folder.is_dir():
        pytest.skip("the small language model stories260K is not in ../shared/data/eeg/tiny_lm")
    return load_llama(folder / "stories260K.bin")


def test_stories260k_gives_the_golden_logits_ids_and_text(stories, golden):
    expected, model = golden("eeg_text"), stories.model
    np.testing.assert_allclose(logits_of(stories, [1])[0], expected["lm_first_logits"], atol=1e-4)
    assert stories.tokenizer.encode("The dog and the park.") == expected["lm_prompt_ids"].tolist()
    made, _ = generate(model, stories.variables, jnp.asarray([1]), 1, 200, room=200)
    assert [1, *made[:60].tolist()] == expected["lm_greedy_ids"].tolist()
    assert stories.tokenizer.decode([1, *made.tolist()]) == str(expected["lm_greedy_text"])


def test_byte_pairs_join_by_score_then_from_the_left():
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)), b" ", b"a", b"b", b"aa", b"ab"]
    pieces += [b" a", b"aab"]
    tokenizer = Llama2cTokenizer(pieces, [0.0] * 262 + [-1.0, -2.0, -3.0, -9.0])
    blank, a, b, aa, ab, blank_a, aab = range(259, 266)
    assert tokenizer.encode("aaa") == [1, blank, aa, a]  # the left one of two equal pairs; then " " + "aa" is no token
    assert tokenizer.encode("aab") == [1, blank, aab]
    assert tokenizer.encode("ab") == [1, blank, ab]
    assert tokenizer.encode("ba") == [1, blank, b, a]
    assert tokenizer.encode("a") == [1, blank_a]
    assert tokenizer.encode("é") == [1, blank, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.encode("") == [1]
    assert tokenizer.decode([1, blank, 3 + 0xC3, 3 + 0xA9, aa, 2]) == "éaa"


def test_damaged_and_missing_files_of_llama2c_are_named(tmp_path):
    path = write_llama2c(random_arrays(), tmp_path)
    content, tokenizer = path.read_bytes(), tmp_path / f"tok{VOCAB}.bin"
    with pytest.raises(WeightSourceError, match="does not exist"):
        load_llama(tmp_path / "absent.bin")
    path.write_bytes(content[:-4])
    with pytest.raises(WeightSourceError, match=f"is truncated: it has {len(content) - 4:,} bytes"):
        load_llama(path)
    path.write_bytes(content + b"1234")
    with pytest.raises(WeightSourceError, match="does not end where it should"):
        load_llama(path)
    for damaged in (b"", content[:20], b"PK\x03\x04" * 40):
        path.write_bytes(damaged)
        with pytest.raises(WeightSourceError, match="is no model of llama2.c"):
            load_llama(path)
    path.write_bytes(content)
    written = tokenizer.read_bytes()
    for damaged in (written[:-3], written + b"1", b""):
        tokenizer.write_bytes(damaged)
        with pytest.raises(WeightSourceError, match=f"is no tokenizer of llama2.c with {VOCAB} tokens"):
            load_llama(path)
    tokenizer.unlink()
    with pytest.raises(WeightSourceError, match=rf"has no tokenizer: .* holds no tok{VOCAB}.bin or tokenizer.bin"):
        load_llama(path)
    with pytest.raises(WeightSourceError, match=r'The tokenizer ".*other.bin" does not exist'):
        load_llama(path, tokenizer=tmp_path / "other.bin")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "describes a GPT2LMHeadModel, and this network is a LlamaForCausalLM"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "sets rope_scaling to"),
        ({"attention_bias": True}, "sets attention_bias to True"),
        ({"hidden_size": "wide"}, "is not usable"),
        ({"num_key_value_heads": 4}, "is no multiple of num_kv_heads=4"),
    ],
)
def test_other_architectures_are_refused(tmp_path, config, text):
    folder = write_folder(random_arrays(), tmp_path / "folder", config=config, tokenizer=False)
    with pytest.raises(WeightSourceError, match=text):
        load_llama(folder)


def test_incomplete_folders_are_named(tmp_path):
    folder = write_folder(random_arrays(), tmp_path / "folder", tokenizer=False)
    with pytest.raises(WeightSourceError, match=r"has no tokenizer: .* holds no tokenizer.json"):
        load_llama(folder)
    (folder / "tokenizer.json").write_text("{}")
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    with pytest.raises(WeightSourceError, match="cannot be read as a tokenizer"):
        load_llama(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 1, "vocab_size": 99}))
    with pytest.raises(WeightMismatchError, match=r"(?s)9 unused by the network.*model.embed_tokens.weight: network"):
        load_llama(folder)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if k != "hidden_size"}))
    with pytest.raises(WeightSourceError, match="has no 'hidden_size'"):
        load_llama(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(WeightSourceError, match="is no JSON object"):
        load_llama(folder)
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightSourceError, match="holds no model.safetensors"):
        load_llama(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(WeightSourceError, match="it has no config.json"):
        load_llama(folder)


def test_sizes_that_do_not_fit_are_refused():
    good = {"vocab_size": 8, "embed_dim": 8, "mlp_dim": 8, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "context": 8}
    for change, text in (({"num_kv_heads": 3}, "multiple"), ({"head_dim": 3}, "odd"), ({"num_heads": 3}, "divide")):
        with pytest.raises(ConfigError, match=text):
            LlamaConfig(**good | change)
    model = Llama(LlamaConfig(**good, tied=False))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert variables["params"]["output"].shape == (8, 8)


def test_a_tokenizer_is_read_from_any_file(tmp_path):
    write_tokenizer(tmp_path / "any.bin")
    assert read_llama2c_tokenizer(tmp_path / "any.bin", VOCAB).encode("a") == [1, 261]
