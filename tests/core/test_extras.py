"""Every optional package that the code asks for is in the extra that the message names."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_extra_that_a_message_names_is_one_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r'need\([^)]*extra="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert asked and asked <= extras.keys()
