"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

    python .ci/oldest.py test > oldest.txt && pip install -c oldest.txt '.[test]'

Arguments are extras, besides what every installation needs.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
needed = project["dependencies"] + [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
for line in dict.fromkeys(needed):
    name, bound, marker = re.fullmatch(r"([\w.-]+)(?:\[[^\]]*\])?[>=]=([\d.]+)\s*(;.*)?", line).groups()
    print(f"{name}=={bound}{marker or ''}")
