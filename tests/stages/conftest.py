"""Two toy stages, so that the machinery is tested without a model."""

import sys
import types
from pathlib import Path

import pytest

from puna.core.errors import MissingError
from puna.stages import stage as stage_module
from puna.stages.stage import Stage, StageRecipe


class WriteRecipe(StageRecipe):
    """Write a text."""

    text: str
    """What to write."""
    times: int = 1
    """How often."""
    threads: int = 1
    """Workers; changes nothing of the output."""


class CopyRecipe(StageRecipe):
    """Copy what another step wrote."""

    source: Path
    """Folder of the step before."""
    fail: bool = False
    """Fail after the first half."""


class Toys:
    """The toy stages with a record of their calls."""

    def __init__(self):
        self.calls = []
        self.write = Stage(
            verb="write",
            recipe=WriteRecipe,
            run=self._write,
            plan=lambda recipe: [("bytes", str(len(recipe.text) * recipe.times))],
            neutral=("threads",),
        )
        self.copy = Stage(
            verb="copy twice",
            recipe=CopyRecipe,
            run=self._copy,
            inputs=lambda recipe: {"source": recipe.source},
            plan=self._plan_copy,
        )

    def _write(self, recipe, folder):
        self.calls.append("write")
        (folder.path / "text.txt").write_text(recipe.text * recipe.times)

    def _copy(self, recipe, folder):
        self.calls.append("copy")
        assert not recipe.fail, "told to fail"
        (folder.path / "text.txt").write_text((recipe.source / "text.txt").read_text() * 2)

    def _plan_copy(self, recipe):
        if not recipe.source.exists():
            raise MissingError(f"{recipe.source} is not there")
        return [("bytes", str(2 * (recipe.source / "text.txt").stat().st_size))]


@pytest.fixture
def toys(monkeypatch):
    toys = Toys()
    table = {"write": toys.write, "copy twice": toys.copy}
    for verb, made in table.items():
        name = f"toy_stage_{verb.replace(' ', '_')}"
        module = types.ModuleType(name)
        module.STAGE = made
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(stage_module.STAGES, verb, name)
    return toys


@pytest.fixture
def workplace(tmp_path, monkeypatch, toys):
    """A working directory with a pipeline of two toy steps."""
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "first.toml").write_text('# puna write: makes the text\nout = "runs/first"\ntext = "ab"\n')
    (recipes / "second.toml").write_text('out = "runs/second"\nsource = "runs/first"\n')
    (recipes / "run.toml").write_text(
        """# both steps
out = "runs"
closing = ["the text is in runs/second"]
[[steps]]
verb = "write"
recipe = "first.toml"
set = ["times=2"]
[[steps]]
verb = "copy twice"
recipe = "second.toml"
"""
    )
    return tmp_path
