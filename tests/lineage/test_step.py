"""What counts as drift, and how it reads."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.lineage.artifact import Input, Record
from puna.lineage.step import DriftError, Step, accept, compare

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=4)


def make(config, name="n", version=1):
    return Step("train", name, version, config, {}, Path("out"), lambda folder: None)


def record(config, inputs=None, name="n", version=1):
    entries = {key: Input(key, value) for key, value in (inputs or {}).items()}
    return Record("train", name, version, "finished", config, entries)


@given(CONFIGS)
def test_equal_settings_never_drift(config):
    assert compare(record(config), make(config), {}) == []


@given(CONFIGS, st.text(min_size=1, max_size=5), JSON)
def test_a_changed_setting_always_drifts_and_is_named(config, key, value):
    changed = {**config, key: value}
    differences = compare(record(config), make(changed), {})
    same = key in config and config[key] == value
    empty = value in ([], {}) and key not in config
    if not same and not empty:
        assert differences
        assert all(d.key == key or d.key.startswith(f"{key}.") for d in differences)


def test_differences_are_told_by_dotted_key_with_old_and_new_value():
    old = {"train": {"steps": 100, "lr": 1e-3}, "sources": [{"kind": "folder", "path": "a"}]}
    new = {"train": {"steps": 200, "lr": 1e-3, "clip": True}, "sources": [{"kind": "folder", "path": "b"}]}
    assert [str(d) for d in compare(record(old), make(new), {})] == [
        "train.steps: 100 -> 200",
        "sources.0.path: a -> b",
        "train.clip: (absent) -> true",
    ]


def test_name_version_and_inputs_drift_too():
    differences = compare(record({}, {"a": "1" * 64}, version=1), make({}, name="m", version=2), {"a": "2" * 64})
    assert [d.key for d in differences] == ["name", "version", "input a"]


def test_an_accepted_state_is_no_drift_but_any_other_still_is():
    old = record({"steps": 1})
    entry = accept(old, make({"steps": 2}), {}, compare(old, make({"steps": 2}), {}))
    kept = Record("train", "n", 1, "finished", {"steps": 1}, {}, accepted=[entry])
    assert compare(kept, make({"steps": 2}), {}) == []
    assert compare(kept, make({"steps": 3}), {})


@pytest.mark.parametrize("finished", [True, False])
def test_the_message_of_a_drift_names_both_ways_out_and_exits_with_2(finished):
    error = DriftError(Path("runs/x"), compare(record({"a": 1}), make({"a": 2}), {}), finished=finished)
    assert error.exit_code == 2
    for part in ("runs/x", "a: 1 -> 2", "--accept-drift", "--fresh"):
        assert part in str(error)
