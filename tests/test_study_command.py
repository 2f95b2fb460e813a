"""The study command: options."""

from __future__ import annotations

import pytest

from jaxkd import study
from jaxkd.errors import ConfigError


def test_an_unknown_option_is_refused_with_those_of_this_command():
    with pytest.raises(ConfigError, match=r'"--bugdet-minutes=3" is not an option.*"--budget-minutes".*--tflops'):
        study.parse(["--config=configs/studies/encoding_mismatch.py", "--workdir=runs/x", "--bugdet-minutes=3"])


def test_options_and_fields_are_told_apart():
    options, config, workdir, _ = study.parse(
        [
            "--config=configs/studies/encoding_mismatch.py:scale=tiny",
            "--workdir=runs/x",
            "--budget-minutes=3",
            "--config.data.source=/data",
        ]
    )
    assert (options.budget_minutes, config.data.source, workdir) == (3, "/data", "runs/x")
