"""The checks on simulated crowds: the bad are found, the truth comes nearer, originals stay."""

import numpy as np
import pytest

from puna.core.errors import UsageError
from puna.post.preference_rows import read_preferences
from puna.post.preferences import export, quality, simulate
from puna.post.preferences.records import Label, read_items, read_labels, write_rows
from puna.stages.annotate_qa import STAGE as QA
from puna.stages.annotate_qa import QualityRecipe, against_truth
from tests.post.preferences.crowd import MIXED_CROWD, labelled, make_items, true_sides

FAST = quality.QualityConfig(resamples=0)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    collection, items, truth = labelled(folder / "c.db", n=160, gold=20, seed=3)
    return collection, items, truth, quality.check(items, collection.labels(), FAST)


@pytest.mark.slow
def test_the_bad_annotators_are_found_and_nobody_else(crowd):
    assert set(crowd[3].excluded) == {person.name for person in MIXED_CROWD if person.bad}
    reasons = {card.name: " ".join(card.reasons) for card in crowd[3].cards}
    assert "faster than reading" in reasons["spammer"]
    assert "takes the left answer" in reasons["lefty"]
    assert "takes the longer answer" in reasons["longer"]


@pytest.mark.slow
def test_checked_labels_are_nearer_to_the_truth_than_a_vote_and_a_vote_than_single_labels(crowd):
    collection, items, truth, found = crowd
    share = against_truth(found, items, collection.labels(), truth)
    assert share["precision"] == share["recall"] == 1.0
    assert share["raw_labels"] < share["majority"] < share["checked"] <= share["kept"]


@pytest.mark.slow
def test_agreement_rises_without_the_bad(crowd):
    alpha = "Krippendorff alpha, side"
    assert crowd[3].trusted[alpha].value > crowd[3].coefficients[alpha].value + 0.2


def test_adjudication_of_the_queue_comes_nearer_still_and_keeps_the_originals(tmp_path):
    collection, items, truth = labelled(tmp_path / "c.db", n=80, gold=10, seed=5)
    before, labels = quality.check(items, collection.labels(), FAST), collection.labels()
    collection.set_disputes(dict(list(before.queue.items())[:30]))
    expert = simulate.PersonConfig(name="expert", skill=8.0)
    assert simulate.run(collection, (), truth, adjudicators=(expert,)) == min(30, len(before.queue))
    after = quality.check(items, collection.labels(), FAST)
    sides = true_sides(items, truth)

    def right(found):
        return np.mean([v.chosen == sides[v.item] for v in found.verdicts])

    assert right(after) > right(before)
    assert [x for x in collection.labels() if x.role == "annotator"] == labels
    assert sum(v.adjudicated for v in after.verdicts) == min(30, len(before.queue))


def test_a_drifting_annotator_is_found(tmp_path):
    tired = simulate.PersonConfig(name="tired", skill=3.0, skill_at_end=-3.0, bad=True)
    collection, items, _ = labelled(tmp_path / "c.db", n=120, gold=10, people=(*MIXED_CROWD[:4], tired), overlap=5)
    card = next(c for c in quality.check(items, collection.labels(), FAST).cards if c.name == "tired")
    assert card.status == "exclude" and any("drifts" in reason for reason in card.reasons)


def test_verdicts_have_reasons_and_edges_are_safe():
    items, _ = make_items(4)
    one, two, three, four = (item.id for item in items)
    labels = [Label(one, name, value=3) for name in "xyz"]
    labels += [Label(two, "x", value=1), Label(three, "x", action="flag"), Label(three, "y", action="flag")]
    labels += [Label(four, "x", value=4, edit="Better."), Label(four, "y", value=2), Label(four, "z", value=-1)]
    found = {v.item: v for v in quality.check(items, labels, FAST).verdicts}
    assert found[one].decision == "accept" and found[one].strength == 3 and found[one].chosen == "a"
    assert found[two].decision == "relabel" and "1 usable" in found[two].reason
    assert found[three].decision == "drop" and "flagged by 2" in found[three].reason
    assert found[four].edit == "Better." and found[four].priority > 0
    with pytest.raises(UsageError, match="no preferences"):
        quality.check(items, [Label(one, "x", action="skip")], FAST)
    with pytest.raises(UsageError, match="not among the items"):
        quality.check(items, [Label("nowhere", "x", value=1)], FAST)


def test_who_judged_alone_or_little_is_not_judged_by_an_agreement_with_nobody():
    items, _ = make_items(30)
    sides = [1 if n % 3 else -1 for n in range(30)]
    few = [Label(item.id, "ada", value=side) for item, side in zip(items[:3], sides, strict=False)]
    (card,) = quality.check(items, few, FAST).cards
    assert card.status == "unjudged" and card.agreement is None
    assert card.reasons == ("too few to judge: 3 of 10 labels",)
    alone = [Label(item.id, "ada", value=side) for item, side in zip(items, sides, strict=True)]
    (card,) = quality.check(items, alone, FAST).cards
    assert card.status == "ok" and card.agreement is None
    assert card.reasons == ("agreement with the others: too few to judge (0 of 10)",)
    both = [Label(items[0].id, name, value=-2) for name in ("ada", "bob")]
    for card in quality.check(items, both, FAST).cards:
        assert card.status == "unjudged" and (card.agreement is None or card.agreement.value == 1.0)


def test_who_says_the_opposite_of_the_others_is_left_out_from_ten_comparisons_on():
    items, _ = make_items(24)

    def status(n):
        labels = [Label(item.id, name, value=3) for item in items[:n] for name in ("x", "y", "z")]
        labels += [Label(item.id, "against", value=-3, left="ab"[i % 2]) for i, item in enumerate(items[:n])]
        return {card.name: card.status for card in quality.check(items, labels, FAST).cards}["against"]

    assert status(9) == "unjudged" and status(24) == "exclude"


@pytest.mark.slow
def test_the_stage_writes_rows_that_are_read_back_and_a_page(crowd, tmp_path):
    from puna.core.run_folder import RunFolder

    collection, items, _, found = crowd
    write_rows(tmp_path / "items.jsonl", items)
    write_rows(tmp_path / "labels.jsonl", collection.labels())
    assert read_items([tmp_path / "items.jsonl"]) == items
    assert read_labels([tmp_path / "labels.jsonl"]) == collection.labels()
    recipe = QualityRecipe(
        out=tmp_path / "out", items=(tmp_path / "items.jsonl",), labels=(tmp_path / "labels.jsonl",), quality=FAST
    )
    QA.run(recipe, RunFolder(tmp_path / "out"))
    rows = read_preferences([tmp_path / "out/preferences.jsonl"])
    assert len(rows) == len(export.training_rows(items, found))
    assert {row.strength for row in rows} <= set(export.STRENGTHS)
    page = (tmp_path / "out/report.html").read_text()
    assert "spammer" in page and "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert "puna annotate qa" in (tmp_path / "out/README.md").read_text()


def test_the_gate_closes_on_whoever_fails_the_test_questions(tmp_path):
    collection, _, _ = labelled(tmp_path / "c.db", n=60, gold=20, gold_rate=0.4, gate_accuracy=0.7, gate_min_gold=5)
    paused = [name for name in collection.names() if _paused(collection, name)]
    assert paused and set(paused) <= {person.name for person in MIXED_CROWD if person.bad}


def _paused(collection, name):
    try:
        collection.next_task(name)
    except Exception as refusal:
        return getattr(refusal, "reason", "") == "paused"
    return False


def test_the_same_seed_gives_the_same_labels(tmp_path):
    found = [labelled(tmp_path / f"{n}.db", n=20, gold=4)[0].labels() for n in range(2)]
    assert [(x.item, x.annotator, x.value, x.left) for x in found[0]] == [
        (x.item, x.annotator, x.value, x.left) for x in found[1]
    ]
