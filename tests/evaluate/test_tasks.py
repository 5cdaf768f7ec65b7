import gzip
import json
import tomllib

import pytest

from puna.core.config import load
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, CorruptError, MissingError
from puna.evaluate.run import evaluate
from puna.evaluate.task import AnswerItem, ChoiceItem
from puna.evaluate.tasks.benchmarks import gsm8k_task, mmlu_task
from puna.evaluate.tasks.config import TaskConfig, build, build_all
from puna.evaluate.tasks.exercises import exercise_task
from puna.evaluate.tasks.jsonl import mosaic_task
from puna.exercises.generate import generate
from tests.evaluate.fake_generator import FakeGenerator


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_exercises_have_the_same_items_for_base_and_chat_models():
    base = exercise_task(n=60, seed=4, style="text", n_shot=3)
    chat = exercise_task(n=60, seed=4, style="dialog")
    assert [i.id for i in base.items] == [i.id for i in chat.items]
    item, other = base.items[0], chat.items[0]
    assert isinstance(item, AnswerItem) and isinstance(item.prompt, str)
    assert item.prompt.count("Question: ") == 4 and item.prompt.endswith("\nAnswer:")
    assert isinstance(other, AnswerItem) and isinstance(other.prompt, Dialog)
    assert item.prompt.endswith(f"Question: {other.prompt.messages[-1].content}\nAnswer:")
    assert base.sampling.stop == ("\n",)


def test_examples_are_of_the_same_kind_and_from_the_train_split():
    held_out = {e.question for e in generate("test", n=4000, seed=0)}
    task = exercise_task(n=80, style="dialog", n_shot=2)
    for item in task.items:
        assert isinstance(item, AnswerItem) and isinstance(item.prompt, Dialog)
        *shots, _, asked = (m.content for m in item.prompt.messages if m.role == "user")
        assert not set(shots) & held_out
        assert asked


def test_an_oracle_reaches_one_and_a_mute_model_zero(tmp_path):
    answers = {e.question: e.response for e in generate("test", n=100, seed=0)}
    oracle = FakeGenerator(lambda p: answers[p.messages[-1].content])
    assert evaluate(oracle, [exercise_task(n=100)], tmp_path / "a")["exercises"].metrics["exact_match"].value == 1.0
    mute = evaluate(FakeGenerator(), [exercise_task(n=100)], tmp_path / "b")["exercises"]
    assert mute.metrics["exact_match"].value == 0.0
    assert mute.reasons == {"empty": 100}


MMLU_ROW = '{q},one,two,"three, or more",four,{a}\n'


@pytest.fixture
def mmlu(tmp_path):
    for part, rows in (("dev", 2), ("test", 3)):
        (tmp_path / part).mkdir()
        for subject, n in (("high_art", rows), ("law", 1)):
            text = "".join(MMLU_ROW.format(q=f"{subject} {part} {i}?", a="ABCD"[i]) for i in range(n))
            (tmp_path / part / f"{subject}_{part}.csv").write_text(text)
    return tmp_path


def test_mmlu_prompt_golden(mmlu):
    item = mmlu_task(mmlu, n_shot=1).items[1]
    assert isinstance(item, ChoiceItem)
    assert item.continuations == (" A", " B", " C", " D")
    assert (item.id, item.gold, item.group) == ("high_art/2", 1, "high_art")
    assert item.prompts[0] == (
        "The following are multiple choice questions (with answers) about high art.\n\n"
        "high_art dev 0?\nA. one\nB. two\nC. three, or more\nD. four\nAnswer: A\n\n"
        "high_art test 1?\nA. one\nB. two\nC. three, or more\nD. four\nAnswer:"
    )


def test_mmlu_is_averaged_over_subjects(mmlu, tmp_path):
    always_a = FakeGenerator(likelihood=lambda p, c: -1.0 if c == " A" else -2.0)
    result = evaluate(always_a, [mmlu_task(mmlu, n_shot=1)], tmp_path / "run")["mmlu"]
    assert result.primary == "acc_macro"
    assert result.metrics["acc"].value == pytest.approx(2 / 4)
    assert result.metrics["acc_macro"].value == pytest.approx((1 / 3 + 1) / 2)


def test_mmlu_in_dialogs_lets_the_model_write_the_letter(mmlu, tmp_path):
    task = mmlu_task(mmlu, n_shot=1, style="dialog")
    result = evaluate(FakeGenerator(lambda p: "The answer is A."), [task], tmp_path / "run")["mmlu"]
    assert result.metrics["exact_match"].value == 0.5
    item = task.items[0]
    assert isinstance(item, AnswerItem) and isinstance(item.prompt, Dialog)
    assert [m.role for m in item.prompt.messages] == ["system", "user", "assistant", "user"]


def test_gsm8k_shots_show_the_working_without_calculator_marks(tmp_path):
    row = {"question": "How many?", "answer": "She has 2*3=<<2*3=6>>6.\nThen 7.\n#### 1,007"}
    path = write(tmp_path / "g.jsonl", row)
    item = gsm8k_task(path, shots=path, n_shot=1, style="text").items[0]
    assert isinstance(item, AnswerItem)
    assert item.prompt == (
        "Question: How many?\nAnswer: She has 2*3=6. Then 7. The answer is 1007.\n\nQuestion: How many?\nAnswer:"
    )
    assert item.judge("... The answer is 1,007.").correct
    with pytest.raises(CorruptError, match="row 1: the answer does not end in"):
        gsm8k_task(write(tmp_path / "bad.jsonl", {"question": "?", "answer": "6"}))


def test_mosaic_formats(tmp_path):
    rows = {
        "choice": {"query": "Fog is in", "choices": ["a marsh", "a desert"], "gold": 0},
        "schema": {"context_options": ["so Ann", "so Bea"], "continuation": "won.", "gold": 1},
        "last_word": {"context": "on my own,", "continuation": "Shane"},
    }
    items = {}
    for name, row in rows.items():
        items[name] = mosaic_task(name, write(tmp_path / f"{name}.jsonl", row)).items[0]
    assert (items["choice"].prompts, items["choice"].continuations) == (("Fog is in",) * 2, (" a marsh", " a desert"))
    assert (items["schema"].prompts, items["schema"].continuations) == (("so Ann", "so Bea"), (" won.", " won."))
    assert (items["last_word"].continuations, items["last_word"].gold) == ((" Shane",), 0)
    trivia = {"context": "Question: Pickler?\nAnswer:", "answer": "Onion", "aliases": ["Onion", "Allium"]}
    task = mosaic_task("trivia", write(tmp_path / "t.jsonl", trivia))
    assert task.items[0].judge(" an onion").correct  # type: ignore[union-attr]


def test_a_task_from_toml_with_other_field_names_and_shots(tmp_path):
    rows = [{"q": f"Question {i}?", "options": ["x", "y"], "gold": "B"} for i in range(3)]
    data, shots = write(tmp_path / "d.jsonl", *rows), write(tmp_path / "s.jsonl", *rows)
    toml = f"""
    kind = "multiple_choice"
    name = "mine"
    path = "{data}"
    shots = "{shots}"
    n_shot = 2
    style = "text"
    fields = {{ question = "q", choices = "options", answer = "gold" }}
    """
    task = build(TaskConfig.model_validate(tomllib.loads(toml)))
    item = task.items[2]
    assert isinstance(item, ChoiceItem)
    assert (task.name, len(task.items), task.n_shot) == ("mine", 3, 2)
    assert item.prompts[0] == (
        "Question: Question 0?\nAnswer: y\n\nQuestion: Question 1?\nAnswer: y\n\nQuestion: Question 2?\nAnswer:"
    )
    assert item.continuations == (" x", " y") and item.gold == 1


def test_compressed_files_and_lists_of_answers(tmp_path):
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "Q?", "answer": ["one", "1"]}) + "\n\n")
    task = build(TaskConfig(kind="generate", path=tmp_path / "d.jsonl.gz"))
    assert len(task.items) == 1 and isinstance(task.items[0], AnswerItem)
    assert task.items[0].judge("1.").correct and not task.items[0].judge("2").correct


def test_perplexity_leaves_empty_texts_out(tmp_path):
    task = build(TaskConfig(kind="perplexity", path=write(tmp_path / "d.jsonl", {"text": ""}, {"text": "abc"})))
    assert [item.id for item in task.items] == ["2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answer": 1}\n{broken\n', "line 2: not valid JSON"),
        (b'{"question": "a"}\n', "row 1: no field 'answer'; it has 'question'"),
        (b"[1]\n", "line 1: a JSON object is needed"),
        (b"\xff\xfe\n", "cannot be read"),
        (b"\n", "has no rows"),
        (b'{"question": 3, "answer": "x"}\n', "row 1: 'question' is int, str is needed"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(CorruptError, match=message):
        build(TaskConfig(kind="generate", path=tmp_path / "d.jsonl"))


def test_truncated_gzip_is_a_clear_error(tmp_path):
    whole = gzip.compress(b'{"question": "a", "answer": "b"}\n' * 500)
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match="cannot be read"):
        build(TaskConfig(kind="generate", path=tmp_path / "d.jsonl.gz"))


def test_a_task_that_cannot_be_built_is_skipped_with_its_reason(tmp_path):
    good = TaskConfig(limit=20)
    tasks, skipped = build_all([TaskConfig(kind="mmlu", path=tmp_path / "none"), good])
    assert [t.name for t in tasks] == ["exercises"]
    assert "no *_test.csv" in skipped["mmlu"]
    with pytest.raises(MissingError):
        build(TaskConfig(kind="perplexity", path=tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=gsm8k", "needs path"),
        ("kinds=['adition']", "did you mean 'addition'"),
        ("n_shot=-1", "0 or more"),
        ("stile=text", "style"),
    ],
)
def test_a_wrong_task_is_found_before_any_work(override, message):
    with pytest.raises(ConfigError, match=message):
        load(TaskConfig, None, [override])


def test_unknown_fields_are_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'question'"):
        TaskConfig(kind="generate", path=tmp_path, fields={"qestion": "q"})
