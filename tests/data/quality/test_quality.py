import json
import random

import numpy as np
import pytest

from puna.core.errors import CorruptError, MissingError, PromptTooLongError, PunaError, UsageError
from puna.data.document import Document
from puna.data.quality.calibrate import Calibration, auc, calibration_error, fit_calibration
from puna.data.quality.label import LABELS, LabelConfig, agreement, label, read_labels, sample
from puna.data.quality.labelled import LabelledConfig, part_of, read_examples, split
from puna.data.quality.linear import LinearConfig, train_linear
from puna.data.quality.rubric import HEADS, ask, read_answer
from puna.data.quality.step import QUALITY, QualityConfig, judge, measure
from puna.data.quality.store import open_classifier, save_linear
from tests.evaluate.fake_generator import FakeGenerator


def _documents(n=40):
    rng = random.Random(0)
    good, bad = ["theorem", "because", "therefore", "history", "century"], ["click", "buy", "now", "free", "win"]
    texts = [" ".join([*rng.choices(good if i % 2 else bad, k=30), f"n{i}"]) for i in range(n)]
    return [Document(t, "a" if i % 4 < 2 else "b", f"u{i}", language="en") for i, t in enumerate(texts)]


def _score(prompt):
    text = prompt.messages[-1].content
    return f"It explains things.\nScore: {4 if 'theorem' in text or 'because' in text else 1}"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Good text.\nScore: 4", 4),
        ("**Score: 3**", 3),
        ("score: 5/5", 5),
        ("Score: 6", None),
        ("Score: 4\nBut I am not sure.", None),
        ("I give it 4 of 5", None),
        ("Score: 45", None),
        ("", None),
    ],
)
def test_answers_are_read_strictly(answer, score):
    assert read_answer(answer) == score


def test_every_head_asks_for_its_rubric():
    dialogs = {head: ask(head, "text") for head in HEADS}
    assert len({d.messages[0].content for d in dialogs.values()}) == len(HEADS)


def test_the_sample_is_even_over_groups_and_does_not_depend_on_the_order():
    documents = _documents()
    chosen = sample(documents, 5, seed=1)
    assert [sum(d.source == s for d in chosen) for s in "ab"] == [5, 5]
    assert sample(reversed(documents), 5, seed=1) == chosen
    assert sample(documents, 5, seed=2) != chosen


def test_labels_come_with_their_agreement_and_a_run_cut_off_goes_on(tmp_path):
    documents = sample(_documents(), 20, seed=0)
    config = LabelConfig(repeat_share=0.5, batch=8)
    generator = FakeGenerator(_score)
    summary = label(generator, documents, config, tmp_path / "whole")
    assert summary["labels"] == 40
    assert summary["kappa"] == summary["same"] == 1
    assert 10 < summary["repeats"] < 30
    asked = {"n": 0}

    def failing(prompt):
        asked["n"] += 1
        return asked["n"] > 20

    with pytest.raises(RuntimeError):
        label(FakeGenerator(_score, fail_on=failing), documents, config, tmp_path / "cut")
    with (tmp_path / "cut" / LABELS).open("a") as out:
        out.write('{"id": "half')
    again = FakeGenerator(_score)
    assert label(again, documents, config, tmp_path / "cut") == summary
    assert len(again.asked) < len(generator.asked)
    assert (tmp_path / "cut" / LABELS).read_text() == (tmp_path / "whole" / LABELS).read_text()


def test_an_unreadable_answer_is_asked_for_again_and_too_many_end_the_run(tmp_path):
    calls = {"n": 0}

    def sometimes(prompt):
        calls["n"] += 1
        return "no idea" if calls["n"] % 3 == 0 else "Score: 2"

    generator = FakeGenerator(sometimes)
    label(generator, _documents(), LabelConfig(repeat_share=0, attempts=8), tmp_path / "a")
    assert len(read_labels(tmp_path / "a" / LABELS)) == 40
    assert len({s.seed for s in generator.samplings}) == len(generator.samplings)
    with pytest.raises(PunaError, match="could not be read"):
        label(FakeGenerator(lambda p: "hello"), _documents(), LabelConfig(), tmp_path / "b")


def test_texts_are_cut_until_they_fit_the_context(tmp_path):
    class Narrow(FakeGenerator):
        def complete(self, prompts, sampling):
            longest = max(len(p.messages[-1].content) for p in prompts)
            if longest > 120:
                raise PromptTooLongError(longest, 120)
            return super().complete(prompts, sampling)

    label(Narrow(_score), _documents(8), LabelConfig(), tmp_path)
    assert 60 < max(len(one.text) for one in read_labels(tmp_path / LABELS)) <= 120


def test_labels_by_likelihood_take_the_likeliest_score(tmp_path):
    generator = FakeGenerator(likelihood=lambda prompt, text: 0.0 if text == "Score: 3" else -9.0)
    label(generator, _documents(8), LabelConfig(method="likelihood"), tmp_path)
    assert {one.score for one in read_labels(tmp_path / LABELS)} == {3}


def test_kappa_is_zero_for_chance_and_counts_near_misses():
    rng = random.Random(0)
    labels = [type("L", (), {"score": rng.randint(0, 5), "again": rng.randint(0, 5)}) for _ in range(4000)]
    assert abs(agreement(labels)["kappa"]) < 0.05
    near = [type("L", (), {"score": i % 6, "again": min(5, i % 6 + 1)}) for i in range(60)]
    assert agreement(near)["within_one"] == 1
    assert 0.7 < agreement(near)["kappa"] < 1


def test_the_linear_classifier_learns_and_survives_its_folder(tmp_path):
    documents = _documents(200)
    texts, labels = [d.text for d in documents], np.arange(200) % 2 == 1
    classifier = train_linear(texts[:150], labels[:150], LinearConfig(bits=14))
    assert auc(classifier.log_odds(texts[150:]), labels[150:]) > 0.99
    assert np.array_equal(classifier.weights, train_linear(texts[:150], labels[:150], LinearConfig(bits=14)).weights)
    save_linear(tmp_path / "c", classifier, head="quality", figures={})
    again = open_classifier(tmp_path / "c")
    assert again.score(texts) == pytest.approx(classifier.score(texts), abs=0.01)
    config = QualityConfig(path=tmp_path / "c", min_score=0.5)
    verdicts = [judge(scores, config) for scores in measure(documents[150:], config)]
    assert [v.keep for v in verdicts] == labels[150:].tolist()
    assert {v.reason for v in verdicts} == {"kept", "quality: low quality"}
    assert QUALITY.thresholds == ("min_score", "max_score")
    with pytest.raises(MissingError, match="puna quality train"):
        open_classifier(tmp_path / "none")
    with pytest.raises(UsageError, match="needs both"):
        train_linear(texts, [True] * 200, LinearConfig(bits=10))


def test_auc_is_the_chance_that_a_positive_scores_higher():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(scores, np.ones(60, bool)))


def test_calibration_makes_probabilities_honest():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.5, 4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(-truth))
    shouted = 4 * truth + 2
    fitted = fit_calibration(shouted[:2000], labels[:2000])
    assert fitted.slope == pytest.approx(0.25, abs=0.04)
    assert calibration_error(fitted(shouted[2000:]), labels[2000:]) < 0.04
    assert calibration_error(Calibration()(shouted[2000:]), labels[2000:]) > 0.1


def test_equal_texts_are_in_the_same_part_and_each_part_has_both_classes(tmp_path):
    assert part_of("Some  Text") == part_of("some text\n")
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "score": i % 6}) + "\n" for i in range(300)))
    parts = split(read_examples(LabelledConfig(labels=(path,))))
    assert 190 < len(parts.train) < 230
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 300
    with pytest.raises(UsageError, match="0 positive"):
        split(read_examples(LabelledConfig(labels=(path,), positive_from=9)))


def test_labels_in_files_may_be_words_flags_or_numbers(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("text,kind,toxic\nhello there,ham,False\nbuy now,spam,True\n")
    words = LabelledConfig(labels=(path,), label_field="kind", positive_words=("spam",))
    flags = LabelledConfig(labels=(path,), label_field="toxic")
    assert [e.positive for e in read_examples(words)] == [e.positive for e in read_examples(flags)] == [False, True]
    with pytest.raises(CorruptError, match="row 1: the label is 'ham'"):
        read_examples(LabelledConfig(labels=(path,), label_field="kind"))
    with pytest.raises(CorruptError, match="no field 'score'"):
        read_examples(LabelledConfig(labels=(path,)))
