"""Weights over the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd.distill import weight_schedule
from jaxkd.errors import ConfigError, UnknownNameError

RAMP = {"schedule": "linear", "from": 0.2, "to": 1.0, "start_step": 10, "end_step": 20}


def at(spec, steps):
    return [float(v) for v in jax.vmap(weight_schedule(spec))(jnp.asarray(steps))]


@pytest.mark.parametrize(
    ("spec", "steps", "expected"),
    [
        (RAMP, [0, 10, 15, 20, 99], [0.2, 0.2, 0.6, 1.0, 1.0]),
        (ConfigDict(RAMP), [15], [0.6]),
        ({**RAMP, "schedule": "cosine"}, [0, 10, 15, 20, 99], [0.2, 0.2, 0.6, 1.0, 1.0]),
        # a quarter of the way half a cosine has gone (1 - cos(pi / 4)) / 2
        ({"schedule": "cosine", "from": 1.0, "to": 0.0, "end_step": 4}, [1], [0.8535534]),
        ({"schedule": "linear", "from": 1.0, "to": 0.0, "end_step": 4}, [0, 1, 4], [1.0, 0.75, 0.0]),
        ({"schedule": "step", "from": 0.2, "to": 0.0, "start_step": 5}, [0, 4, 5, 6], [0.2, 0.2, 0.0, 0.0]),
    ],
)
def test_values(spec, steps, expected):
    np.testing.assert_allclose(at(spec, steps), expected, rtol=1e-6)


def test_constants_functions_and_python_steps():
    for spec in (0.25, {"schedule": "constant", "value": 0.25}):
        assert float(weight_schedule(spec)(7)) == 0.25
    assert float(weight_schedule(1)(7)) == 1.0
    assert weight_schedule(lambda step: step + 1)(7) == 8
    assert float(weight_schedule(RAMP)(15)) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (
            {"schedule": "lineer", "from": 0, "to": 1, "end_step": 9},
            UnknownNameError,
            r"w has schedule='lineer'.*Did you mean \"linear\"",
        ),
        ({"from": 0, "to": 1}, UnknownNameError, r"schedule=None.*constant, linear, cosine, step"),
        ({**RAMP, "end": 9}, ConfigError, r'field "end" that nothing reads.*from, to, end_step, start_step'),
        ({"schedule": "linear", "from": 0, "to": 1}, ConfigError, r'lacks the field "end_step"'),
        ({**RAMP, "end_step": 10}, ConfigError, r"from step 10 to step 10"),
        ({**RAMP, "start_step": -1}, ConfigError, r"w.start_step=-1 is out of range"),
        ({**RAMP, "end_step": 20.5}, ConfigError, r"w.end_step=20.5 is out of range"),
        ({**RAMP, "to": -0.1}, ConfigError, r"w.to=-0.1 is out of range.*at least 0"),
        ({**RAMP, "from": "0.2"}, ConfigError, r"w.from='0.2' is out of range"),
        (float("nan"), ConfigError, r"w=nan is out of range"),
        (True, ConfigError, r"w=True is out of range"),
        ("0.2", ConfigError, r"w='0.2' is out of range"),
        (None, ConfigError, r"w=None is out of range"),
    ],
)
def test_nonsense(spec, error, text):
    with pytest.raises(error, match=text):
        weight_schedule(spec, name="w")


def test_upper_bound():
    with pytest.raises(ConfigError, match=r"alpha=1.5 is out of range.*at least 0 and at most 1"):
        weight_schedule(1.5, name="alpha", most=1.0)
