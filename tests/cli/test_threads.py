"""Waiting threads: a look at the processors decides, and the user's own setting stands."""

import os

import pytest

from puna.cli import threads

IDLE = "cpu  100 0 100 800 0 0 0 0 0 0\n"
LATER = {"quiet": "cpu  101 0 100 899 0 0 0 0 0 0\n", "busy": "cpu  160 0 100 840 0 0 0 0 0 0\n"}


def look(monkeypatch, tmp_path, state):
    stat = tmp_path / "stat"
    stat.write_text(IDLE)
    monkeypatch.setattr(threads.time, "sleep", lambda _: stat.write_text(LATER[state]))
    return threads.busy_share(stat)


def test_the_share_in_use_is_that_of_the_look_not_of_all_time(monkeypatch, tmp_path):
    assert look(monkeypatch, tmp_path, "quiet") == pytest.approx(0.01)
    assert look(monkeypatch, tmp_path, "busy") == pytest.approx(0.6)


def test_a_system_that_does_not_tell_changes_nothing(monkeypatch, tmp_path):
    assert threads.busy_share(tmp_path / "nowhere") is None


def test_threads_sleep_on_a_busy_machine_only_and_never_against_the_user(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "busy_share", lambda: 0.01)
    threads.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setattr(threads, "busy_share", lambda: 0.6)
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    threads.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    threads.choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")


def test_what_there_is_to_note_is_handed_back_not_said(monkeypatch, capsys):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "busy_share", lambda: 0.6)
    assert "60%" in threads.choose_waiting()
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("OMP_WAIT_POLICY")
