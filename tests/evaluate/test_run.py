import json
import math

import pytest

from puna.core.dialog import Dialog
from puna.core.errors import Stopped
from puna.core.generator import Completion, Sampling
from puna.evaluate import run
from puna.evaluate.report import COLUMNS, Results, compare, table_rows
from puna.evaluate.run import RESULTS, SAMPLES, evaluate, read_samples
from puna.evaluate.task import AnswerItem, ChoiceItem, Judgement, PassageItem, Task
from tests.evaluate.fake_generator import FakeGenerator


def says(target):
    return lambda answer: Judgement(answer == target, "correct" if answer == target else "other text")


def sums(n=10, **more):
    items = tuple(AnswerItem(f"s{i}", f"{i}+{i}=", str(2 * i), says(str(2 * i)), group=f"g{i % 2}") for i in range(n))
    return Task("sums", items, "exact_match", **more)


def solve(prompt):
    a, b = prompt.rstrip("=").split("+")
    return str(int(a) + int(b))


def choices():
    items = (
        ChoiceItem("a", ("q", "q"), (" yes", " no"), 1, group="x"),
        ChoiceItem("b", ("q", "q"), (" long answer", " x"), 0, group="y"),
        ChoiceItem("c", ("q",), (" only",), 0, group="y"),
    )
    return Task("choices", items, "acc")


def test_answers_are_judged_and_counted(tmp_path):
    generator = FakeGenerator(answer=lambda p: "0" if p.startswith("7") else solve(p))
    result = evaluate(generator, [sums()], tmp_path, batch_size=3)["sums"]
    assert result.score is not None
    assert (result.score.value, result.score.n, result.score.method) == (0.9, 10, "wilson")
    assert result.groups["g0"].value == 1.0
    assert result.groups["g1"].value == 0.8
    assert result.reasons == {"correct": 9, "other text": 1}
    assert result.metrics["exact_match_macro"].value == pytest.approx(0.9)


def test_choices_are_taken_by_likelihood_and_by_likelihood_a_byte(tmp_path):
    likelihood = {" yes": -5.0, " no": -4.0, " long answer": -6.0, " x": -5.0, " only": -0.5}
    evaluate(FakeGenerator(likelihood=lambda p, c: likelihood[c]), [choices()], tmp_path)
    a, b, c = read_samples(tmp_path)
    assert (a["answer"], a["scores"]["acc"], a["scores"]["acc_norm"]) == (" no", 1.0, 0.0)
    assert (b["answer"], b["scores"]["acc"], b["scores"]["acc_norm"]) == (" x", 0.0, 1.0)
    assert c["scores"] == {"acc": 1.0, "gold_bits_per_byte": pytest.approx(0.5 / 4 / math.log(2))}
    assert a["scores"]["gold_bits_per_byte"] == pytest.approx(4 / 2 / math.log(2))


def test_perplexity_counts_bytes_and_tokens_of_all_texts(tmp_path):
    task = Task("text", (PassageItem("1", "héllo"), PassageItem("2", "abcd" * 10)), "bits_per_byte")
    generator = FakeGenerator(likelihood=lambda p, c: -len(c.encode()) * math.log(4))
    result = evaluate(generator, [task], tmp_path)["text"]
    assert generator.asked == ["", ""]
    assert result.metrics["bits_per_byte"].value == pytest.approx(2.0)
    assert result.metrics["token_perplexity"].value == pytest.approx(4.0)
    assert sum(r["bytes"] for r in read_samples(tmp_path)) == 46


def test_a_killed_run_resumes_without_asking_again_and_ends_with_the_same_files(tmp_path):
    evaluate(FakeGenerator(solve), [sums()], tmp_path / "whole", batch_size=3)
    dies = FakeGenerator(solve)
    original = dies.complete

    def complete(prompts, sampling):
        if dies.calls == 2:
            raise KeyboardInterrupt
        return original(prompts, sampling)

    dies.complete = complete
    with pytest.raises(KeyboardInterrupt):
        evaluate(dies, [sums()], tmp_path / "killed", batch_size=3)
    samples = tmp_path / "killed" / SAMPLES
    with samples.open("a") as file:
        file.write('{"task": "sums", "id": "s')
    again = FakeGenerator(solve)
    evaluate(again, [sums()], tmp_path / "killed", batch_size=3)
    assert len(dies.asked) == 6
    assert len(again.asked) == 4
    assert not set(dies.asked) & set(again.asked)
    for name in (SAMPLES, RESULTS):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_asks_nothing_and_another_model_or_prompt_is_asked_anew(tmp_path):
    evaluate(FakeGenerator(solve), [sums()], tmp_path)
    same = FakeGenerator(solve)
    evaluate(same, [sums()], tmp_path)
    assert same.calls == 0
    other = FakeGenerator(solve)
    evaluate(other, [sums()], tmp_path, model="other weights")
    assert len(other.asked) == 10
    more = FakeGenerator(solve)
    evaluate(more, [sums(12)], tmp_path, model="other weights")
    assert sorted(more.asked) == ["10+10=", "11+11="]


def test_a_line_that_is_no_record_is_skipped(tmp_path):
    evaluate(FakeGenerator(solve), [sums()], tmp_path)
    lines = (tmp_path / SAMPLES).read_text().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_text("".join([*lines[:4], "garbage\n", *lines[5:]]))
    again = FakeGenerator(solve)
    evaluate(again, [sums()], tmp_path)
    assert len(again.asked) == 1


def test_a_failing_item_is_reported_and_the_others_are_judged(tmp_path):
    generator = FakeGenerator(solve, fail_on=lambda p: p.startswith("3"))
    result = evaluate(generator, [sums()], tmp_path, batch_size=5)["sums"]
    assert (result.n, result.failed) == (9, 1)
    assert result.errors == {"s3": "RuntimeError: the device is on fire"}
    assert result.score is not None and result.score.value == 1.0
    mended = FakeGenerator(solve)
    assert evaluate(mended, [sums()], tmp_path, batch_size=5)["sums"].failed == 0
    assert mended.asked == ["3+3="]


def test_a_task_without_any_answer_has_no_figure_and_no_crash(tmp_path):
    results = evaluate(FakeGenerator(solve, fail_on=lambda p: True), [sums(3)], tmp_path)
    assert results["sums"].score is None
    assert table_rows(results) == [["sums", "exact_match", "0", "0", "-", "-", "3"]]


def test_a_likelihood_that_is_no_number_is_a_failed_item(tmp_path):
    generator = FakeGenerator(likelihood=lambda p, c: math.nan if c == " yes" else -2.0)
    result = evaluate(generator, [choices()], tmp_path)["choices"]
    assert (result.n, result.failed) == (2, 1)
    assert "not a number" in result.errors["a"]


def test_a_stop_request_saves_and_says_so(tmp_path, monkeypatch):
    class Requested:
        requested = True

        def __enter__(self):
            return self

        def __exit__(self, *rest):
            return None

    monkeypatch.setattr(run, "StopRequest", Requested)
    with pytest.raises(Stopped, match="Run the same command"):
        evaluate(FakeGenerator(solve), [sums()], tmp_path)


def test_sampled_answers_do_not_depend_on_an_interruption(tmp_path):
    def sampled(name):
        generator = FakeGenerator()

        def complete(prompts, sampling):
            generator.asked += prompts
            return [Completion(f"{sampling.seed}/{i}", (1,), (0.0,), "stop", 1) for i in range(len(prompts))]

        generator.complete = complete
        return generator

    task = sums(sampling=Sampling(temperature=0.7, seed=5))
    evaluate(sampled("a"), [task], tmp_path / "whole", batch_size=4)
    evaluate(sampled("b"), [task], tmp_path / "cut", batch_size=4)
    lines = (tmp_path / "cut" / SAMPLES).read_text().splitlines(keepends=True)
    (tmp_path / "cut" / SAMPLES).write_text("".join(lines[:3]))
    evaluate(sampled("c"), [task], tmp_path / "cut", batch_size=4)
    assert (tmp_path / "cut" / SAMPLES).read_bytes() == (tmp_path / "whole" / SAMPLES).read_bytes()


def test_results_survive_json_and_name_what_was_skipped(tmp_path):
    results = evaluate(FakeGenerator(solve), [sums()], tmp_path, skipped={"gpqa": "no file"})
    read = Results.from_json(json.loads((tmp_path / RESULTS).read_text()))
    assert read == results
    rows = table_rows(read)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][:5] == ["sums", "exact_match", "0", "10", "1.000"]
    assert rows[1][:2] == ["gpqa", "skipped: no file"]


def test_two_runs_are_compared_on_common_items(tmp_path):
    evaluate(FakeGenerator(lambda p: "0"), [sums()], tmp_path / "a")
    evaluate(FakeGenerator(solve), [sums(8)], tmp_path / "b")
    paired = compare(read_samples(tmp_path / "a"), read_samples(tmp_path / "b"), metric="exact_match")
    assert (paired.n, paired.only_a, paired.only_b) == (8, 0, 7)
    with pytest.raises(ValueError, match="no item"):
        compare(read_samples(tmp_path / "a"), read_samples(tmp_path / "b"), metric="acc")


def test_clusters_widen_the_interval(tmp_path):
    def task(clustered):
        items = tuple(
            AnswerItem(f"{i}", f"{i}+0=", "x", says(str(i)), cluster=f"c{i // 5}" if clustered else "")
            for i in range(40)
        )
        return Task("t", items, "exact_match")

    generator = FakeGenerator(lambda p: solve(p) if (int(p.split("+")[0]) // 5) % 2 else "?")
    wide = evaluate(generator, [task(True)], tmp_path / "c")["t"].score
    narrow = evaluate(generator, [task(False)], tmp_path / "n")["t"].score
    assert wide is not None and narrow is not None
    assert (wide.method, narrow.method) == ("clustered", "wilson")
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


def test_half_a_surrogate_pair_in_an_answer_does_not_stop_the_run(tmp_path):
    evaluate(FakeGenerator(lambda p: "\ud800"), [sums(2)], tmp_path)
    assert [r["answer"] for r in read_samples(tmp_path)] == ["\ud800", "\ud800"]


def test_dialogs_are_saved_as_messages(tmp_path):
    task = Task("d", (AnswerItem("1", Dialog.of(("user", "hi")), "hi", says("hi")),), "exact_match")
    evaluate(FakeGenerator(lambda p: "hi"), [task], tmp_path)
    assert read_samples(tmp_path)[0]["prompt"] == [{"role": "user", "content": "hi"}]
