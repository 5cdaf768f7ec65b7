"""A disk that is really full: a small tmpfs that another writer fills while a corpus is being made. Needs root."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.core.files import TEMPORARY_PREFIX, verify
from puna.data.curate import CurateConfig, curate

_CHILD = """
import json, sys
from puna.data.curate import CurateConfig, curate
from puna.core.errors import PunaError
try:
    curate(CurateConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2], workers=1)
except PunaError as error:
    print(error)
    sys.exit(1)
"""


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_no_half_file_and_the_next_run_goes_on(tmp_path, small_disk):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(120):
        (texts / f"{i:03d}.txt").write_text(" ".join(f"word{(i * 7919 + k * k) % 50021}" for k in range(3000)))
    source = {"kind": "folder", "name": "texts", "path": str(texts), "task_bytes": 200_000, "language": "en"}
    config = CurateConfig.model_validate({"sources": [source], "steps": [{"kind": "exact"}, {"kind": "minhash"}]})
    line = [sys.executable, "-c", _CHILD, config.model_dump_json(), str(small_disk / "corpus")]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not list((small_disk / "corpus").glob("work/pass-*/*/task.json")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "No space left on device" in said
    left = [path for path in (small_disk / "corpus").rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(TEMPORARY_PREFIX)]
    for record in (small_disk / "corpus").glob("work/pass-*/*/task.json"):
        json.loads(record.read_text())
    ballast.unlink()
    again = curate(config, small_disk / "corpus", workers=1)
    calm = curate(config, tmp_path / "calm", workers=1)
    assert verify(again.path) == verify(calm.path)
    assert not list(Path(again.path).rglob(f"{TEMPORARY_PREFIX}*"))
