"""Rows of labels: nobody counts twice, and every complaint names file and line."""

import json

import pytest

from puna.cli.main import run as puna
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError
from puna.post.preferences.collection import Collection
from puna.post.preferences.records import Item, Label, read_labels, write_rows
from puna.post.preferences.simulate import MIXED_CROWD, run
from tests.post.preferences.crowd import make_items

ITEMS = [Item(f"item-{n}", Dialog.of(("user", f"{n}?")), f"{n}.", "None.") for n in range(3)]
LABELS = [Label(item.id, name, value=2, id=f"{name}-{item.id}") for item in ITEMS for name in ("ada", "bob")]


def refused(paths, **settings):
    with pytest.raises(ConfigError) as raised:
        read_labels(paths, **settings)
    return list(raised.value.problems)


def rows(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_the_same_label_twice_is_refused_with_both_places(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_rows(path, [*LABELS, LABELS[0]])
    (problem,) = refused([path])
    assert problem.startswith(f"{path}:7: the id 'ada-item-0' stands at {path}:1 already")
    write_rows(path, LABELS)
    write_rows(tmp_path / "other.jsonl", LABELS[2:3])
    (problem,) = refused([path, tmp_path / "other.jsonl"])
    assert problem.startswith(f"{tmp_path / 'other.jsonl'}:1: ") and f"{path}:3 already" in problem
    assert len(refused([path, path])) == len(LABELS)
    assert read_labels([path]) == LABELS


def test_one_id_for_two_people_is_refused_and_so_is_a_second_judgement_without_an_id(tmp_path):
    one = {"item": "item-0", "annotator": "ada", "value": 1, "id": "same-id"}
    path = rows(tmp_path / "labels.jsonl", one, one | {"annotator": "bob"})
    assert f"the id 'same-id' stands at {path}:1 already" in refused([path])[0]
    plain = {"item": "item-0", "annotator": "ada", "value": 1}
    path = rows(tmp_path / "labels.jsonl", plain, plain | {"value": -1}, plain | {"occasion": 1})
    (problem,) = refused([path])
    assert problem.startswith(f"{path}:2: 'ada' judged 'item-0' at {path}:1 already") and "--every-revision" in problem


def test_qa_refuses_labels_that_are_named_twice(tmp_path, capsys):
    write_rows(tmp_path / "items.jsonl", ITEMS)
    write_rows(tmp_path / "labels.jsonl", LABELS)
    told = f'name = "x"\nout = "{tmp_path}/out"\nitems = ["{tmp_path}/items.jsonl"]\n'
    (tmp_path / "qa.toml").write_text(f'# puna annotate qa: a test\n{told}labels = ["{tmp_path}/labels.jsonl"]\n')
    twice = f'labels=["{tmp_path}/labels.jsonl", "{tmp_path}/labels.jsonl"]'
    assert puna(["annotate", "qa", str(tmp_path / "qa.toml"), twice]) == 2
    assert "labels.jsonl:1 already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"time": "yesterday"}, "'time' is 'yesterday'; it must be ISO 8601"),
        ({"time": 5}, "'time' is 5"),
        ({"item": "iten-0"}, "'item' is 'iten-0', which is not among the items. Did you mean 'item-0'?"),
        ({"item": "nope"}, "'item' is 'nope', which is not among the items"),
        ({"round": "first"}, "'round' is 'first'; it must be a whole number"),
        ({"value": 2.0}, "'value' is 2.0"),
        ({"value": True}, "'value' is True"),
        ({"occasion": True}, "'occasion' is True"),
    ],
)
def test_a_label_that_cannot_be_used_is_told_with_file_and_line(tmp_path, changed, said):
    row = {"item": "item-0", "annotator": "ada", "value": 1, "time": "2026-01-02T03:04:05Z"}
    path = rows(tmp_path / "labels.jsonl", row | {"annotator": "bob"}, row | changed)
    (problem,) = refused([path], items=ITEMS)
    assert problem.startswith(f"{path}:2: {said}")


def test_labels_of_two_simulated_rounds_can_be_read_together(tmp_path):
    for number in range(2):
        items, truth = make_items(6, round=number + 1)
        collection = Collection.create(tmp_path / f"{number}.db", items)
        run(collection, MIXED_CROWD[:3], truth)
        write_rows(tmp_path / f"{number}.jsonl", collection.labels())
        collection.close()
    assert len(read_labels([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])) == 36


def test_adjudicate_wants_at_least_one_item(tmp_path, capsys):
    Collection.create(tmp_path / "c.db", ITEMS).close()
    assert puna(["annotate", "adjudicate", str(tmp_path / "c.db"), "--most", "-3"]) == 2
    assert "-3 is not in the range x>=1" in capsys.readouterr().err
