"""Whole or absent, and sealed."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from puna.core import files
from puna.core.errors import CorruptError, MissingError, PunaError


def test_a_failing_write_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_open(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_a_clear_error(tmp_path):
    with pytest.raises(PunaError, match="cannot write"), files.atomic_open(tmp_path / "a.bin", "wb") as file:
        file.write(b"half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os, signal\nfrom puna.core.files import atomic_open\n"
        f"with atomic_open({str(path)!r}) as f:\n    f.write('new' * 100000)\n    f.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "b.txt").write_text("hello")
    (folder / "log.txt").write_text("12:00 started")
    files.seal(folder, kind="corpus")
    return folder


def test_a_seal_covers_content_and_not_the_runs_own_files(artifact):
    before = files.verify(artifact)
    (artifact / "log.txt").write_text("13:00 started")
    (artifact / "work").mkdir()
    (artifact / "work" / "half").write_text("x")
    assert files.seal(artifact, kind="corpus") == before == files.fingerprint(artifact)
    assert set(files.read_json(artifact / files.SEAL)["files"]) == {"a.bin", "deep/b.txt"}


def test_one_flipped_bit_is_found_and_named(artifact):
    data = bytearray((artifact / "a.bin").read_bytes())
    data[100] ^= 1
    (artifact / "a.bin").write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.bin is not what its checksum says"):
        files.verify(artifact)


def test_a_cut_or_missing_file_is_named(artifact):
    os.truncate(artifact / "a.bin", 10)
    with pytest.raises(CorruptError, match=r"a\.bin has 10 bytes"):
        files.verify(artifact)
    (artifact / "a.bin").unlink()
    with pytest.raises(CorruptError, match=r"a\.bin is missing"):
        files.verify(artifact)


def test_the_fingerprint_of_a_plain_folder_follows_names_and_bytes(tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "x").write_text("1")
    first = files.fingerprint(folder)
    (folder / "x").rename(folder / "y")
    assert files.fingerprint(folder) != first
    with pytest.raises(MissingError):
        files.fingerprint(tmp_path / "nowhere")


def test_a_training_run_stands_for_its_model(artifact, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    artifact.rename(run / "model")
    assert files.fingerprint(run) == files.fingerprint(run / "model")


def test_too_little_space_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(PunaError, match="needs 116 MiB, 16 MiB of them in reserve, and the disk has 1 MiB"):
        files.need_free_space(tmp_path / "new" / "folder", 100 << 20)


def test_json_errors_name_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(CorruptError, match=r"a\.json is not valid JSON"):
        files.read_json(path)
    files.write_json(path, {"b": 1, "a": "ü"})
    assert json.loads(path.read_text()) == {"a": "ü", "b": 1}
