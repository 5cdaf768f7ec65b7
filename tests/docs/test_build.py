"""The documentation builds, every warning being an error, and its generated pages are complete."""

import subprocess
import sys

import pytest

from tests.docs.commands import ROOT


@pytest.mark.timeout(600)
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    cli = (tmp_path / "html/reference/generated/cli.html").read_text()
    fields = (tmp_path / "html/reference/generated/recipes.html").read_text()
    api = (tmp_path / "html/reference/generated/api-core.html").read_text()
    assert "puna tokenize train" in cli
    assert "puna export meta" in cli
    assert "vocab_size" in fields
    assert 'id="puna.core.files.seal"' in api
