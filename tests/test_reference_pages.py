"""The pages of docs/reference, which docs/generate_reference.py writes."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_the_committed_pages_are_those_of_the_code():
    assert not generate.stale(), f"Run `{generate.RUN}` and commit what it writes."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "mdbn_x4", "eeg_words_base"])
def test_numbers_of_networks_are_those_of_the_traced_program(name):
    assert generate.count(name) == json.loads(generate.NUMBERS.read_text())[name]
