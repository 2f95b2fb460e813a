"""Runs of blocks as one loop: the same numbers as block after block, in a smaller program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError

DROPS = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}
LIFT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
# family -> (sizes, features in the middle of and between runs)
CASES = {
    "deit": ({"depth": 5, "init_values": 0.1}, ("block_1", "prefix_2")),
    "cait": ({"depth": 4, "depth_token_only": 1}, ("block_2", "block_3")),
    "swin": ({"depths": (1, 7), "img_size": 24}, ("stage_1.block_5", "stage_1")),
}


def results(model, variables, images, key, taps, **options):
    """Output, features, and the gradient of a sum over both."""

    def loss(variables):
        rngs = {} if key is None else {"dropout": key}
        output, features = model.apply(variables, images, train=True, taps=taps, rngs=rngs, **options)
        return sum(jnp.square(x).sum() for x in (output, *features.values())), (output, features)

    (_, answer), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    return answer, gradient


def assert_same(found, expected, gradient_scale):
    (answer, gradient), (plain, plain_gradient) = found, expected
    assert answer[1].keys() == plain[1].keys()
    for a, b in zip(jax.tree.leaves(answer), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(abs(b).max()))
    assert jax.tree.structure(gradient) == jax.tree.structure(plain_gradient)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * gradient_scale)


def largest(tree) -> float:
    return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("family", CASES)
def test_a_loop_over_blocks_changes_no_number(tiny, randomised, random_key, pictures, family):
    """Output, features and gradients, with the random masks that the blocks draw by themselves."""
    sizes, taps = CASES[family]
    plain = tiny(family, **sizes, drop_path_rate=0.3)
    looped = tiny(family, **sizes, drop_path_rate=0.3, scan_blocks=True)
    variables, images = randomised(plain), pictures(plain)
    expected = results(plain, variables, images, random_key(7), taps)
    assert_same(results(looped, variables, images, random_key(7), taps), expected, largest(expected[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "remat"), [("cait", True), ("deit", "attention")])
def test_a_loop_that_recomputes_changes_no_number_either(tiny, randomised, random_key, pictures, family, remat):
    sizes, taps = CASES[family]
    plain = tiny(family, **sizes, **DROPS)
    looped = tiny(family, **sizes, **DROPS, scan_blocks=True, remat=remat)
    variables, images = randomised(plain), pictures(plain)
    expected = results(plain, variables, images, random_key(7), taps)
    assert_same(results(looped, variables, images, random_key(7), taps), expected, largest(expected[1]))


@pytest.mark.parametrize("kind", ["lift", "widelast"])
def test_students_with_wide_ends_loop_over_their_narrow_blocks(randomised, random_key, pictures, kind):
    name = f"{kind}_deit_tiny_patch16_224"
    plain, looped = (models.create(name, **LIFT, drop_path_rate=0.3, scan_blocks=scan) for scan in (False, True))
    variables, images = randomised(plain), pictures(plain)
    expected = results(plain, variables, images, random_key(7), ("block_2",))
    assert_same(results(looped, variables, images, random_key(7), ("block_2",)), expected, largest(expected[1]))


def test_features_inside_a_block_and_offsets_take_the_block_out_of_the_loop(tiny, randomised, pictures):
    plain, looped = (tiny("deit", depth=5, scan_blocks=scan) for scan in (False, True))
    variables, images = randomised(plain), pictures(plain)
    taps = ("attn_2", "block_4")
    offsets = {"block_2": 0.1 * jnp.ones((2, 4, 4, 24)), "attn_3": 0.1 * jnp.ones((2, 3, 17, 17))}
    expected = results(plain, variables, images, None, taps, offsets=offsets)
    assert_same(results(looped, variables, images, None, taps, offsets=offsets), expected, largest(expected[1]))


def products(jaxpr) -> int:
    """Matrix products in the text of a program, however often they run."""
    return str(jaxpr).count("dot_general")


@pytest.mark.parametrize("family", ["deit", "cait"])
def test_the_program_holds_one_block_in_the_place_of_many(tiny, pictures, family):
    counts = {}
    for depth in (3, 9):
        for scan in (False, True):
            model = tiny(family, depth=depth, scan_blocks=scan)
            images = pictures(model)
            shapes = models.abstract_variables(model, images.shape)
            counts[scan, depth] = products(jax.make_jaxpr(lambda v, m=model, x=images: m.apply(v, x))(shapes))
    assert counts[True, 9] == counts[True, 3] < counts[False, 3] < counts[False, 9]


def test_a_loop_leaves_the_tree_of_parameters_as_it_is(tiny, random_key, pictures):
    plain, looped = (tiny("cait", scan_blocks=scan) for scan in (False, True))
    values = (jax.jit(m.init)(random_key(0), pictures(plain, 1)) for m in (plain, looped))
    jax.tree.map(np.testing.assert_array_equal, *values)


def test_a_loop_without_a_key_says_so(tiny, randomised, pictures):
    model = tiny("deit", depth=3, drop_path_rate=0.3, scan_blocks=True)
    variables = randomised(model)
    with pytest.raises(ConfigError, match=r'Stochastic depth .* is on and train=True, but apply got no key named "d'):
        model.apply(variables, pictures(model), train=True)


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("remat", [False, "attention", "dots"])
def test_recomputed_attention_matrices_are_not_stored(tiny, pictures, family, remat):
    model = tiny(family, remat=remat)
    images = pictures(model)
    tokens = {"deit": 17, "cait": 16, "swin": 9}[family]

    def stored(variables):
        return jax.vjp(lambda v: model.apply(v, images, train=True)[0].sum(), variables)[1]

    kept = jax.tree.leaves(jax.eval_shape(stored, models.abstract_variables(model, images.shape)))
    kept = [leaf.shape for leaf in kept if leaf.ndim > 2 and leaf.shape[0] == len(images)]
    matrices = [shape for shape in kept if shape[-2:] == (tokens, tokens)]
    assert bool(matrices) == (remat is False), matrices


@pytest.mark.parametrize("policy", ["atention", 1, None])
def test_another_policy_is_refused(tiny, policy):
    with pytest.raises(ConfigError, match=r"remat=.* is not possible\..*Use one of: False, True, \"attention\", \"d"):
        tiny("deit", remat=policy)


def test_networks_without_attention_have_no_policy_for_it():
    with pytest.raises(ConfigError, match=r'remat="attention" is not possible\. Use one of: False, True; this network'):
        models.create("mdbn_x2", remat="attention")
