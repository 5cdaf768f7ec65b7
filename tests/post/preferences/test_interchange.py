"""Other tools' forms: what both sides can say comes back exactly, what one cannot is counted, bad rows are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puna.cli.main import run as puna
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, CorruptError, MissingError
from puna.post.preferences.interchange import argilla, label_studio, ultrafeedback
from puna.post.preferences.records import Item, Label, read_items, read_labels, write_rows

TALK = Dialog.of(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Which & <why>?\n2 lines"))
ITEMS = [
    Item("one", TALK, 'This: "x" <b>', "That", "small", "large", 2, uncertainty=0.25),
    Item("two", Dialog.of(("user", "2 + 2?")), "4", "5", "small", "large", 1, gold="a"),
    Item("three", Dialog.of(("user", "名前は?")), "はい", "いいえ"),
    Item("four", Dialog.of(("user", "Nobody?")), "a", "b", "m"),
]
LABELS = [
    Label("one", "ada", value=4, left="b", seconds=3.5, round=2, edit="This, then", reasons=("safer",), note="sure",
          time="2026-01-02T03:04:05.000+00:00", guideline="abc", id="submission-1"),
    Label("one", "ben", value=-1, left="b", seconds=9.0, round=2, reasons=("own reason", "formatting")),
    Label("one", "grace", value=3, left="b", round=2, role="adjudicator"),
    Label("two", "ada", value=2, left="a", seconds=1.25),
    Label("two", "ben", action="skip", left="a"),
    Label("three", "ada", action="flag", left="a", note="what?"),
    Label("three", "ben", value=-2, left="a", occasion=0),
    Label("three", "ben", value=-3, left="a", occasion=1),
]  # fmt: skip


def saved(written, folder):
    for name, text in written.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_argilla_gives_back_items_and_answers(tmp_path):
    written = argilla.write(ITEMS, LABELS)
    found = argilla.read(saved(written, tmp_path), {})
    assert found.items == ITEMS
    kept = [replace(x, left="a", seconds=None, time="", guideline="", id="") for x in LABELS if not x.occasion]
    assert sorted(found.labels, key=str) == sorted(kept, key=str)
    assert written.left_out["repeats: Argilla keeps one answer of a person to an item"] == 1
    assert argilla.write(found.items, found.labels).files == {**written.files}


def test_label_studio_gives_back_items_and_labels_with_times_and_repeats(tmp_path):
    written = label_studio.write(ITEMS, LABELS)
    found = label_studio.read(saved(written, tmp_path), {})
    assert found.items == ITEMS
    kept = [replace(x, guideline="", id="") for x in LABELS]
    assert found.labels == kept
    assert not +written.left_out
    assert label_studio.write(found.items, found.labels).files == written.files
    turned = [replace(LABELS[0], left="a"), *LABELS[1:]]
    assert label_studio.write(ITEMS, turned).left_out["sides: a task of Label Studio has one for everybody"] == 1


def test_sides_of_unlabelled_tasks_are_spread(tmp_path):
    items = [replace(ITEMS[2], id=f"i{n}") for n in range(64)]
    tasks = json.loads(label_studio.write(items, []).files["tasks.json"])
    assert 16 < sum(task["data"]["left_is"] == "a" for task in tasks) < 48


def test_ultrafeedback_gives_back_every_preference(tmp_path):
    written = ultrafeedback.write(ITEMS, LABELS)
    found = ultrafeedback.read(saved(written, tmp_path), {})
    assert found.items == [replace(x, gold=None, uncertainty=None) for x in ITEMS[:3]]
    kept = [Label(x.item, x.annotator, value=x.value, round=x.round) for x in LABELS if x.winner and not x.occasion]
    assert found.labels == kept
    assert written.left_out["repeats: a row says nothing of a second time"] == 1
    assert written.left_out["labels that skip: a row is a preference"] == 1
    again = ultrafeedback.write(found.items, found.labels)
    assert again.files == written.files


def test_published_ultrafeedback_is_read(tmp_path):
    row = {"source": "x", "instruction": "Say hi", "models": ["m", "n", "o"]}
    row["completions"] = [{"model": m, "response": t, "overall_score": s, "critique": "c"} for m, t, s in
                          (("m", "Hi", 8.5), ("n", "Hello", "6"), ("o", "Hey", 6))]  # fmt: skip
    other = {"prompt": "Say hi", "prompt_id": "p", "score_chosen": 9.0, "score_rejected": 2.0, "messages": []}
    for side, text in (("chosen", "Hi"), ("rejected", "No")):
        other[side] = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": text}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    found = ultrafeedback.read(path, {})
    assert [(label.annotator, label.value) for label in found.labels] == [("ultrafeedback", v) for v in (2, 2, 4)]
    assert found.items[0].model_b == "n" and sum(found.left_out.values()) == 1
    path.write_text((json.dumps(other) + "\n") * 2)
    twice = ultrafeedback.read(path, {})
    assert len(twice.labels) == 1 and twice.left_out["labels of a person who judged the item before"] == 1


def test_what_other_people_s_projects_are_called_can_be_said(tmp_path):
    record = {"id": "r", "fields": {"instruction": "Hi", "g1": "x", "g2": "y"}, "metadata": {},
              "responses": {"best": [{"value": "b", "user_id": "u1"}]}}  # fmt: skip
    (tmp_path / "records.json").write_text(json.dumps([record]))
    names = {"prompt": "instruction", "a": "g1", "b": "g2", "preference": "best"}
    assert argilla.read(tmp_path, names).labels == [Label("r", "u1", value=-3)]
    with pytest.raises(ConfigError, match=r"records\.json:1: .*'prompt' is missing.*--field prompt=THEIRS"):
        argilla.read(tmp_path, {})
    task = {"id": 5, "data": {"q": "Hi", "left": "x", "right": "y"}, "annotations": [
        {"completed_by": {"id": 3, "email": "ada@x"}, "lead_time": 2, "was_cancelled": False, "ground_truth": False,
         "result": [{"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": "right"}}]}]}  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps([task], indent=1))
    found = label_studio.read(tmp_path / "export.json", {"prompt": "q", "side": "pw"})
    assert [(x.annotator, x.value, x.seconds) for x in found.labels] == [("ada@x", -3, 2.0)]
    with pytest.raises(ConfigError, match=r"export\.json:1: .*It has 'pw'; say what the tag is called"):
        label_studio.read(tmp_path / "export.json", {"prompt": "q"})


@pytest.mark.parametrize(
    ("module", "name", "text", "told"),
    [
        (argilla, "records.json", '[{"fields": null}]', r"records\.json:1: 'fields' has no fields"),
        (argilla, "records.json", '[{"id": "x", "fields": {"prompt": "p", "a": "1", "b": "1"}}]', "are the same"),
        (argilla, "records.json", '[{"fields": {"prompt": "p", "a": "1", "b": "2"}, "responses": {"preference": '
         '[{"value": "c", "user_id": "u"}]}}]', "the preference is 'c'; allowed"),
        (argilla, "records.json", "{", r"the records of Argilla cannot be used[\s\S]*not valid JSON"),
        (label_studio, "tasks.json", '[{"data": 1}]', "the tasks of Label Studio cannot be used"),
        (label_studio, "tasks.json", '[{"data": {"prompt": "x", "left": "1", "right": "2"}, "annotations": '
         '[{"completed_by": 1, "was_cancelled": true, "created_at": "yesterday"}]}]', "'created_at' is 'yesterday'"),
        (label_studio, "tasks.json", '[{"prompt": "x", "side": "left"}]', "not as JSON-MIN"),
        (label_studio, "tasks.json", '[{"data": {"prompt": "x", "left": "1", "right": "2"}, "annotations": '
         '[{"result": []}]}]', "no 'completed_by'"),
        (ultrafeedback, "preferences.jsonl", '{"chosen": "x", "rejected": "y"}', r"preferences\.jsonl:1: 'chosen' is text"),
        (ultrafeedback, "preferences.jsonl", '{"instruction": "x", "completions": [{"response": "a"}, {"response": "b", '
         '"overall_score": "much"}]}', "'overall_score' is 'much'; it must be a number"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_told_with_file_and_place(tmp_path, module, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=told):
        module.read(tmp_path, {})


def test_missing_files_and_a_wrong_users_file_are_told(tmp_path):
    with pytest.raises(MissingError, match=r"records\.json is not there; name the file that Argilla wrote"):
        argilla.read(tmp_path, {})
    saved(argilla.write(ITEMS, LABELS), tmp_path)
    (tmp_path / "users.json").write_text('["ada"]')
    with pytest.raises(CorruptError, match="for each user"):
        argilla.read(tmp_path, {})


def test_the_verbs_go_there_and_back(tmp_path, capsys):
    write_rows(tmp_path / "log/items.jsonl", ITEMS)
    write_rows(tmp_path / "log/labels.jsonl", LABELS)
    for form in ("argilla", "label-studio", "ultrafeedback"):
        there, back = str(tmp_path / form), tmp_path / f"{form}-back"
        assert puna(["annotate", "export", form, str(tmp_path / "log"), there]) == 0
        assert puna(["annotate", "import", form, there, str(back)]) == 0
        assert len(read_items([back / "items.jsonl"])) >= 3 and read_labels([back / "labels.jsonl"])
    assert "left out, 1: repeats" in capsys.readouterr().out
    before = (tmp_path / "argilla/records.json").read_bytes()
    assert puna(["annotate", "export", "argilla", str(tmp_path / "log"), str(tmp_path / "argilla")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "argilla/records.json").read_bytes() == before
    assert puna(["annotate", "export", "argilla", str(tmp_path / "log"), str(tmp_path / "argilla/users.json")]) == 2
    write_rows(tmp_path / "one/labels.jsonl", LABELS[:1])
    write_rows(tmp_path / "one/items.jsonl", ITEMS[:1])
    assert puna(["annotate", "export", "argilla", str(tmp_path / "one"), str(tmp_path / "one-there")]) == 0
    assert puna(["annotate", "import", "argilla", str(tmp_path / "one-there"), str(tmp_path / "one-back")]) == 0
    assert "1 labels of 1 person in" in capsys.readouterr().out
    write_rows(tmp_path / "one/labels.jsonl", LABELS[3:4])
    assert puna(["annotate", "export", "argilla", str(tmp_path / "one"), str(tmp_path / "not-there")]) == 2
    assert "labels.jsonl:1: 'item' is 'two', which is not among the items" in capsys.readouterr().err
    assert not (tmp_path / "not-there").exists()
    assert puna(["annotate", "import", "argilla", str(tmp_path / "argilla"), str(tmp_path / "x"), "--field", "a"]) == 2
    assert puna(["annotate", "export", "argilla", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 3


def test_argilla_s_own_sdk_reads_settings_and_records_and_writes_the_same(tmp_path):
    rg = pytest.importorskip("argilla")
    from argilla.records._io import JsonIO

    class Api:
        def __getattr__(self, name):
            return self

    client = object.__new__(rg.Argilla)  # its objects want a client, not a server
    rg.Argilla._default_client, rg.Argilla.api = client, Api()
    written = saved(argilla.write(ITEMS, LABELS), tmp_path)
    settings = rg.Settings.from_json(written / ".argilla/settings.json")
    settings.validate()
    assert [question.name for question in settings.questions] == ["preference", "reasons", "edit", "note"]
    assert len(settings.questions["preference"].labels) == 10
    records = JsonIO._records_from_json(written / "records.json")
    assert len(records) == len(ITEMS) and len(list(records[0].responses)) == 7
    JsonIO.to_json(records, tmp_path / "theirs" / "records.json" if (tmp_path / "theirs").mkdir() is None else Path())
    (tmp_path / "theirs/users.json").write_text((written / "users.json").read_text())
    theirs, ours = argilla.read(tmp_path / "theirs", {}), argilla.read(written, {})
    assert theirs.items == ours.items and sorted(theirs.labels, key=str) == sorted(ours.labels, key=str)


def test_label_studio_s_own_sdk_finds_the_tasks_to_fit_the_config():
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import AnnotationValue, TaskValue

    written = label_studio.write(ITEMS, LABELS)
    interface = LabelInterface(written.files["label-config.xml"])
    interface.validate()
    tasks = json.loads(written.files["tasks.json"])
    for task in tasks:
        TaskValue(data=task["data"])
        assert interface.validate_task({"data": task["data"]})
        for annotation in task["annotations"]:
            if not annotation["ground_truth"]:
                AnnotationValue(**annotation)
            for region in annotation["result"]:
                assert interface.get_control(region["from_name"]).tag.lower() == region["type"]
            checked = [region for region in annotation["result"] if region["type"] != "pairwise"]
            assert interface._validate_object({"result": checked}, return_errors=True) == []
