"""Joined objectives: each member has the loss, terms, state and gradients of its own objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.distill import Term, build_objective, join_objectives
from jaxkd.distill.objective import Objective
from jaxkd.distill.population import MEMBER

B, K = 4, 5
PAIRS = (("block_0", "block_0"), ("block_1", "block_2"))
TIMES_TWO = {"loss": "mse", "weight": {"schedule": "linear", "from": 1.0, "to": 0.0, "end_step": 10}}


def objectives() -> list[Objective]:
    return [
        build_objective([{"loss": "ce"}, {"loss": "spectral", "weight": 0.2}], pairs=PAIRS[:1]),
        build_objective([{"loss": "ce"}, {"loss": "spectral", "weight": 0.4}], pairs=PAIRS),
        build_objective([{"loss": "kl", "temperature": 2.0}, {"loss": "ce", "weight": 0.5}, TIMES_TWO], pairs=PAIRS),
        build_objective([{"loss": "kl", "temperature": 4.0}]),
        build_objective([{"loss": "ce", "smoothing": 0.0}]),
    ]


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    student = (draw(B, K), {f"block_{i}": draw(B, 2, 2, 6) for i in range(2)})
    teacher = (draw(B, K), {f"block_{i}": draw(B, 2, 2, 8) for i in range(3)})
    return student, teacher, {"label": jnp.arange(B), "mask": jnp.array([True, True, False, True])}


@pytest.mark.parametrize("step", [0, 4])
def test_each_member_has_the_loss_and_gradient_of_its_own_objective(outputs, step):
    student, teacher, batch = outputs
    joined, single = join_objectives(objectives()), objectives()
    assert [term.name for term in joined.terms] == ["ce", "spectral", "kl", "ce@2", "mse", "kl@2", "ce@3"]
    assert joined.pairs == PAIRS and joined.student_taps == ("block_0", "block_1")

    def loss(objective, student, batch):
        total, terms, _ = objective({}, {}, student, teacher, batch, step)
        return total, terms

    def of_member(member):
        return jax.value_and_grad(lambda s: loss(joined, s, {**batch, MEMBER: member}), has_aux=True)(student)

    (totals, terms), grads = jax.jit(jax.vmap(of_member))(jnp.arange(len(single)))
    for member, own in enumerate(single):
        (total, own_terms), own_grads = jax.value_and_grad(lambda s, o=own: loss(o, s, batch), has_aux=True)(student)
        np.testing.assert_allclose(totals[member], total, rtol=1e-6)
        for name, value in own_terms.items():
            np.testing.assert_allclose(terms[name][member], value, rtol=1e-6, err_msg=name)
        assert all(terms[name][member] == 0 for name in set(terms) - set(own_terms))
        jax.tree.map(lambda a, b, m=member: np.testing.assert_allclose(a[m], b, rtol=1e-5, atol=1e-8), grads, own_grads)


def broken(student, teacher, batch):
    """Finite gradients nowhere: the root of 0."""
    return jnp.sqrt(0.0 * student[0].sum(axis=1)) / 0.0


def trained(params, mutable, student, teacher, batch):
    return params["scale"] * student[0].sum(axis=1) / batch["zero"], {"seen": mutable["seen"] + 1.0}


def start(key, student, teacher):
    return {"scale": jax.random.normal(key)}, {"seen": jnp.zeros(())}


def test_the_nan_of_a_term_stays_in_the_members_that_have_it(outputs):
    student, teacher, batch = outputs
    ce = build_objective([{"loss": "ce"}]).terms
    terms = (Term("broken", 1.0, broken), Term("trained", 1.0, trained, init=start))
    own = [Objective(ce), Objective((*ce, *terms))]
    joined = join_objectives(own)
    params, mutable = joined.init(jax.random.key(3), (student, teacher), member=1)
    expected = own[1].init(jax.random.key(3), (student, teacher))
    jax.tree.map(np.testing.assert_array_equal, (params, mutable), expected)
    given = {**batch, "zero": jnp.zeros(B)}

    def of_member(member):
        def loss(params, student):
            total, _, state = joined(params, mutable, student, teacher, {**given, MEMBER: member}, 0)
            return total, state

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, student)

    (totals, state), grads = jax.vmap(of_member)(jnp.arange(2))
    finite = [bool(jnp.isfinite(leaf[0]).all()) for leaf in jax.tree.leaves((totals, grads))]
    assert all(finite) and not np.isfinite(totals[1])
    np.testing.assert_array_equal(state["trained"]["seen"], [0.0, 1.0])
    assert grads[0]["trained"]["scale"][0] == 0.0
