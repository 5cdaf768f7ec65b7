import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from pydantic import ValidationError

from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, UsageError
from puna.core.generator import Completion
from puna.post.dialogs import read_dialogs
from puna.post.preference_rows import read_preferences
from puna.post.rejection import RejectionConfig, Task, reject, right_shares
from puna.post.selection import Answer, Samples, expected_best, pass_at_k, preference_pairs, summarize

CONFIG = RejectionConfig(samples_per_task=6, tasks_per_call=4, max_tokens=8, seed=3)


class Adder:
    """A generator that adds two numbers, sometimes wrongly, decided by the seed; even numbers of the second are hard."""

    name = "adder"

    def __init__(self, dies_after=10**9):
        self.calls, self.dies_after = 0, dies_after

    def complete(self, prompts, sampling):
        self.calls += 1
        if self.calls > self.dies_after:
            raise KeyboardInterrupt
        return [self._answer(prompt, sampling.seed, index) for index, prompt in enumerate(prompts)]

    def _answer(self, prompt, seed, index):
        text = prompt.messages[-1].content
        drawn = hashlib.sha256(f"{text} {seed} {index}".encode()).digest()[0]
        a, b = map(int, text.split("+"))
        right = drawn % 3 == 0 and b % 4 != 2
        stopped = drawn % 7 != 1
        return Completion(
            text=f" {a + b if right else a + b + 1 + drawn % 2}\n",
            tokens=(1, 2),
            logprobs=(0.0, 0.0),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=3,
        )

    def stream(self, prompt, sampling):
        raise NotImplementedError

    def logprobs(self, prompts, continuations):
        raise NotImplementedError


@dataclass(frozen=True)
class Word:
    correct: bool
    reason: str


def check(task, text):
    return Word(text == task.reference, "" if text == task.reference else "wrong sum")


def tasks(n=10):
    return [Task(f"t{a}", Dialog.of(("user", f"{a}+{a + 1}")), reference=str(2 * a + 1)) for a in range(n)]


def contents(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_right_answers_become_dialogs_and_right_with_wrong_become_pairs(tmp_path):
    result = reject(tasks(), Adder(), check, CONFIG, tmp_path)
    dialogs, pairs = read_dialogs([tmp_path / "sft.jsonl"]), read_preferences([tmp_path / "preferences.jsonl"])
    assert len(dialogs) == result.n_imitations > 0 and len(pairs) == result.n_pairs > 0
    right = {task.prompt.messages[0].content: task.reference for task in tasks()}
    for row in dialogs:
        assert row.dialog.messages[1].content == right[row.dialog.messages[0].content]
    for pair in pairs:
        assert pair.chosen[0].content == right[pair.prompt.messages[0].content] != pair.rejected[0].content


def test_a_task_that_is_never_solved_gives_its_reference_as_chosen_and_says_so(tmp_path):
    result = reject(tasks(), Adder(), check, CONFIG, tmp_path)
    pairs = read_preferences([tmp_path / "preferences.jsonl"])
    hard = {f"{a}+{a + 1}" for a in range(10) if (a + 1) % 4 == 2}
    from_reference = {p.prompt.messages[0].content for p in pairs if p.source == "reference"}
    assert hard <= from_reference and result.n_reference_pairs == len(from_reference)
    without = reject(tasks(), Adder(), check, changed(use_reference=False), tmp_path / "b")
    assert without.n_reference_pairs == 0 and without.n_pairs == result.n_pairs - len(from_reference)


def changed(**changes):
    return CONFIG.model_copy(update=changes)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_killed_run_goes_on_and_gives_the_set_of_an_undisturbed_one(tmp_path, calls):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    reject(tasks(), Adder(), check, CONFIG, undisturbed)
    with pytest.raises(KeyboardInterrupt):
        reject(tasks(), Adder(dies_after=calls), check, CONFIG, killed)
    with (killed / "samples.jsonl").open("a") as file:
        file.write('{"task": "t0", "answ')  # the kill came in the middle of a line
    again = Adder()
    reject(tasks(), again, check, CONFIG, killed)
    assert again.calls == 3 - calls
    assert contents(killed) == contents(undisturbed)


def test_half_a_call_in_the_file_is_drawn_again(tmp_path):
    reject(tasks(), Adder(), check, CONFIG, tmp_path)
    whole = contents(tmp_path)
    lines = whole["samples.jsonl"].splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(lines[:7]))
    again = Adder()
    reject(tasks(), again, check, CONFIG, tmp_path)
    assert again.calls == 2 and contents(tmp_path) == whole


def test_a_finished_run_draws_nothing_and_may_choose_other_rows(tmp_path):
    first = reject(tasks(), Adder(), check, CONFIG, tmp_path)
    unused = Adder()
    more = reject(tasks(), unused, check, changed(pairs_per_task=4), tmp_path)
    assert unused.calls == 0 and more.n_pairs > first.n_pairs and more.statistics == first.statistics


def test_samples_of_other_settings_tasks_or_models_are_refused(tmp_path):
    reject(tasks(), Adder(), check, CONFIG, tmp_path)
    for arguments, named in [
        ((tasks(), Adder(), check, changed(temperature=0.5)), "temperature"),
        ((tasks(9), Adder(), check, CONFIG), "tasks"),
    ]:
        with pytest.raises(UsageError, match=named):
            reject(*arguments, tmp_path)
    with pytest.raises(UsageError, match="model"):
        reject(tasks(), Adder(), check, CONFIG, tmp_path, model_fingerprint="other")


def test_the_seed_decides_the_draws_and_nothing_else_does(tmp_path):
    for name, config in [("a", CONFIG), ("b", CONFIG), ("c", changed(seed=4))]:
        reject(tasks(), Adder(), check, config, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["sft.jsonl"] != contents(tmp_path / "c")["sft.jsonl"] or (
        contents(tmp_path / "a")["statistics.json"] != contents(tmp_path / "c")["statistics.json"]
    )


def test_impossible_requests_are_told_together(tmp_path):
    twice = [tasks()[0], tasks()[0]]
    with pytest.raises(ConfigError) as raised:
        reject(twice, Adder(), check, changed(temperature=0.0), tmp_path)
    assert len(raised.value.problems) == 2 and "'t0' occurs twice" in raised.value.problems[0]
    with pytest.raises(ConfigError, match="no tasks"):
        reject([], Adder(), check, CONFIG, tmp_path)


# --- selection


def answer(text, *, correct=False, finished=True):
    return Answer(text, 2, finished, correct, "" if correct else "wrong")


def samples(*answers, reference="R"):
    return Samples("t", Dialog.of(("user", "q")), reference, answers)


def test_the_most_frequent_right_answer_meets_the_most_frequent_mistake():
    drawn = samples(
        answer("a"), answer("b"), answer("b"), answer("Y", correct=True), answer("X", correct=True),
        answer("X", correct=True),
    )  # fmt: skip
    pairs = preference_pairs(drawn, limit=3, use_reference=True)
    assert [(p.chosen[0].content, p.rejected[0].content) for p in pairs] == [("X", "b"), ("X", "a"), ("Y", "b")]


def test_answers_without_an_end_and_empty_ones_stand_in_no_row():
    drawn = samples(answer("a", finished=False), answer(""), answer("X", correct=True))
    assert preference_pairs(drawn, limit=3, use_reference=True) == []


def test_a_verifier_that_refuses_the_reference_itself_makes_no_pair_of_equal_answers():
    assert preference_pairs(samples(answer("R")), limit=1, use_reference=True) == []


def test_pass_at_k_is_the_chance_over_all_subsets():
    for n_correct in range(6):
        outcomes = [1] * n_correct + [0] * (5 - n_correct)
        for k in range(1, 6):
            subsets = list(combinations(outcomes, k))
            assert pass_at_k(5, n_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_statistics_count_signal_mistakes_and_unfinished_answers():
    mixed = samples(answer("X", correct=True), answer("a"))
    never = replace(mixed, answers=(answer("a"), answer("b", finished=False)))
    statistics = summarize([mixed, never])
    assert statistics.pass_at == {1: 0.25, 2: 0.5}
    assert (statistics.with_signal, statistics.never_right, statistics.unfinished) == (0.5, 0.5, 0.25)
    assert statistics.reasons == {"wrong": 3} and statistics.distinct == 2.0


def test_samples_are_kept_as_json_lines_with_the_settings_first(tmp_path):
    reject(tasks(), Adder(), check, CONFIG, tmp_path)
    first, *rest = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert first["settings"]["samples_per_task"] == 6 and [r["task"] for r in rest] == [t.id for t in tasks()]


def test_rejection_sampling_loads_no_torch():
    code = "import sys, puna.post.rejection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def by_length(asked):
    return [[-float(len(text)) for text in texts] for _, texts in asked]


def digits(asked):
    return [[float(text or 0) for text in texts] for _, texts in asked]


def test_the_expected_best_of_k_never_falls_and_is_what_enumeration_gives():
    scores = [3.0, -1.0, 2.0, 2.0, 0.5]
    expected = [sum(max(c) for c in combinations(scores, k)) / len(list(combinations(scores, k))) for k in range(1, 6)]
    got = [expected_best(scores, k) for k in range(1, 6)]
    assert got == pytest.approx(expected) and got == sorted(got)


def test_without_a_verifier_the_reward_model_chooses_and_contrasts_best_with_worst(tmp_path):
    config = CONFIG.model_copy(update={"selection": "best"})
    result = reject(tasks(6), Adder(), None, config, tmp_path, scores=digits)
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    drawn = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 6 and result.statistics.best_of
    for row, record in zip(rows, drawn, strict=True):
        finished = [a["score"] for a in record["answers"] if a["finished"]]
        assert row["quality"] == max(finished) == float(row["messages"][-1]["content"])
    for pair in read_preferences([tmp_path / "preferences.jsonl"]):
        assert float(pair.chosen[0].content) > float(pair.rejected[0].content)


def test_the_argmax_does_not_depend_on_the_scale_of_the_reward(tmp_path):
    config = CONFIG.model_copy(update={"selection": "best"})

    def scaled(asked):
        return [[7.0 * x - 100 for x in row] for row in digits(asked)]

    def chosen(folder, scores):
        reject(tasks(6), Adder(), None, config, folder, scores=scores)
        return [json.loads(line)["messages"] for line in (folder / "sft.jsonl").read_text().splitlines()]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert chosen(tmp_path / "a", digits) == chosen(tmp_path / "b", scaled)


def test_the_random_baseline_is_as_large_from_the_same_answers_and_follows_its_seed(tmp_path):
    def chosen(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        config = CONFIG.model_copy(update=changes)
        reject(tasks(12), Adder(), None, config, folder, scores=by_length)
        return [json.loads(line)["messages"][-1]["content"] for line in (folder / "sft.jsonl").read_text().splitlines()]

    best, random = chosen("best", selection="best"), chosen("random", selection="random")
    assert len(best) == len(random) and best != random
    assert chosen("again", selection="random") == random


def test_a_share_of_all_rows_is_kept_by_score(tmp_path):
    config = CONFIG.model_copy(update={"selection": "best", "best_share": 0.5})
    reject(tasks(8), Adder(), None, config, tmp_path, scores=digits)
    kept = [json.loads(line)["quality"] for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    (tmp_path / "all").mkdir()
    reject(tasks(8), Adder(), None, CONFIG.model_copy(update={"selection": "best"}), tmp_path / "all", scores=digits)
    every = [json.loads(line)["quality"] for line in (tmp_path / "all/sft.jsonl").read_text().splitlines()]
    assert sorted(kept) == sorted(every)[4:]


def test_choices_that_need_scores_are_refused_without_them(tmp_path):
    with pytest.raises(ConfigError, match="need the scores of a reward model"):
        reject(tasks(4), Adder(), check, CONFIG.model_copy(update={"selection": "best"}), tmp_path)
    with pytest.raises(ConfigError, match="nothing judges the answers"):
        reject(tasks(4), Adder(), None, CONFIG, tmp_path)


def test_tasks_that_are_too_hard_or_too_easy_give_no_rows_and_are_not_drawn_again(tmp_path):
    every = reject(tasks(40), Adder(), check, CONFIG, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()[1:]]
    shares = {r["task"]: sum(a["correct"] for a in r["answers"]) / len(r["answers"]) for r in records}
    drawn = Adder()
    middling = changed(right_between=(0.1, 0.34))
    fewer = reject(tasks(40), drawn, check, middling, tmp_path)
    kept = sum(0.1 <= share <= 0.34 for share in shares.values())
    assert drawn.calls == 0 and fewer.statistics == every.statistics
    assert 0 < fewer.n_imitations == kept < every.n_imitations and 0 < fewer.n_pairs <= kept < every.n_pairs
    assert fewer.n_reference_pairs == 0 < every.n_reference_pairs


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (-0.1, 1.0), (0.0, 1.5)])
def test_bounds_that_hold_no_share_are_refused(tmp_path, bounds):
    with pytest.raises(ValidationError, match="the lower one first"):
        RejectionConfig(right_between=bounds)
    with pytest.raises(ConfigError, match="needs a verifier"):
        config = changed(right_between=(0.1, 0.9))
        reject(tasks(), Adder(), None, config, tmp_path, scores=lambda asked: [[0.0] * len(a) for _, a in asked])


def test_nothing_is_called_right_where_nothing_verified_it(tmp_path):
    result = reject(tasks(6), Adder(), None, changed(selection="best"), tmp_path, scores=by_length)
    found = result.statistics
    assert (found.pass_at, found.with_signal, found.never_right) == ({}, None, None)
    assert set(found.reasons) <= {"finished", "empty", "did not end"} and sum(found.reasons.values()) == found.n_answers
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()[1:]]
    assert not any("correct" in answer for record in records for answer in record["answers"])
    again = reject(tasks(6), Adder(dies_after=0), None, changed(selection="best"), tmp_path, scores=by_length)
    assert again == result
    with pytest.raises(UsageError, match="nothing verified"):
        right_shares(tmp_path)
