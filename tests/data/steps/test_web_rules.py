import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from puna.data.document import Document
from puna.data.steps import line_dedup, pii
from puna.data.steps.line_repetition import coverage
from puna.data.steps.registry import STEPS, StepEntry
from tests.data.steps.barrier_bench import decide_on, kept


def _edit(text, language="en", **values):
    config = TypeAdapter(StepEntry).validate_python(values)
    return STEPS[values["kind"]].edit([Document(text, "s", "u", language=language)], config)[0]


def _judge(document, **values):
    config = TypeAdapter(StepEntry).validate_python(values)
    step = STEPS[values["kind"]]
    return step.judge(step.measure([document], config)[0], config)


SENTENCES = (
    "This is a sentence with enough words.\nHere comes another sentence with words.\nAnd this is a third sentence here."
)


def test_c4_keeps_sentences_and_cuts_the_rest():
    edited = _edit(
        SENTENCES + "\nHome\nWe use cookies on this site every day.\nPlease enable javascript to go on.", kind="c4"
    )
    assert edited.document.text == SENTENCES
    assert edited.verdict.keep
    assert edited.counts == {"lines without an end mark": 1, "lines about policy": 1, "lines about javascript": 1}
    assert _edit("Too short.", kind="c4").verdict.reason == "c4: too few sentences"
    assert (
        _edit(SENTENCES + "\nfunction f() { return the answer to it all. }.", kind="c4").verdict.reason
        == "c4: curly bracket"
    )
    assert _edit(SENTENCES.replace("third", "third[1]"), kind="c4").document.text == SENTENCES


def test_refinedweb_cuts_counters_but_not_sentences_that_begin_like_one():
    many = "\n".join(["A line of text that stays as it is, whatever else is going on around here."] * 20)
    edited = _edit(
        f"{many}\n12 likes\n12 likes and a real sentence\nSHOUTING LINE\n2024\nRead more...", kind="refinedweb"
    )
    assert "12 likes and a real sentence" in edited.document.text
    assert edited.counts["counters"] == 1
    assert edited.verdict.keep
    assert not _edit("12 likes\nA line", kind="refinedweb").verdict.keep


def test_fineweb_names_the_rule():
    lines = "A line that ends as a sentence does, and is long enough.\n" * 3
    assert _judge(Document("x\n" * 30, "s", "u"), kind="fineweb").reason == "fineweb: few lines end a sentence"
    assert _judge(Document(lines, "s", "u"), kind="fineweb").reason == "fineweb: duplicate lines"
    assert _judge(Document("Ends.\n" * 1 + "Short. Yes.", "s", "u"), kind="fineweb").reason == "fineweb: short lines"


def test_a_line_that_repeats_itself_goes_and_a_long_clean_one_stays():
    log = "ERROR retry failed at node seven " * 12
    clean = " ".join(f"word{i}" for i in range(60))
    assert coverage(log, 3) > 0.8
    assert coverage(clean, 3) == 0
    edited = _edit(f"{clean}\n{log}", kind="line_repetition")
    assert edited.document.text == clean


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail jane.doe@example.co.uk", "mail email@example.com"),
        ("Mail j@x.org. Then", "Mail email@example.com. Then"),
        (
            "host 8.8.8.8 is public, 192.168.1.1 is not, 1.2.3 is a version",
            "host 192.0.2.1 is public, 192.168.1.1 is not, 1.2.3 is a version",
        ),
        ("v1.2.3.4.5 stays", "v1.2.3.4.5 stays"),
        ("dns 2001:4860:4860::8888 here", "dns 192.0.2.1 here"),
        ("call +1 (555) 123-4567 or 555-123-4567", "call 555-0100 or 555-0100"),
        ("price 1234567890 and date 2024-04-18", "price 1234567890 and date 2024-04-18"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key <key>."),
        ("a decorator @property and a handle @jane", "a decorator @property and a handle @jane"),
    ],
)
def test_personal_data_is_masked_and_other_numbers_are_not(text, masked):
    config = pii.PiiConfig(mask=("email", "ip", "phone", "key"))
    once, _ = pii.mask(text, config)
    assert once == masked
    assert pii.mask(once, config)[0] == once


def test_bad_words_are_matched_whole_but_anywhere_where_no_spaces_are(tmp_path):
    (tmp_path / "en.txt").write_text("ass\nbad phrase\n")
    (tmp_path / "ja").write_text("悪い\nsm\n")
    rule = {"kind": "bad_words", "lists": tmp_path, "max_fraction": 0.05}
    assert _judge(Document("A class passes the assessment. " * 5, "s", "u", language="en"), **rule).keep
    assert _judge(Document("ass bad phrase ass", "s", "u", language="en"), **rule).reason == "bad_words: too dense"
    assert not _judge(Document("とても悪いとても悪い", "s", "u", language="ja"), **rule).keep
    assert _judge(Document("smsmsm", "s", "u", language="ja"), **rule).keep
    assert _judge(Document("ass ass ass", "s", "u", language="xx"), **rule).keep


def test_addresses_are_blocked_by_domain_word_and_part(tmp_path):
    (tmp_path / "words").write_text("casino # gambling\n")
    rule = {"kind": "url_list", "block_domains": ["bad.org"], "words_file": tmp_path / "words"}
    assert _judge(Document("x", "s", "https://sub.bad.org/a"), **rule).reason == "url_list: blocked domain"
    assert _judge(Document("x", "s", "https://notbad.org/a"), **rule).keep
    assert _judge(Document("x", "s", "https://a.org/Best-Casino/"), **rule).reason == "url_list: blocked word"
    assert _judge(Document("x", "s", "https://a.org/casinos"), **rule).keep


def test_opt_outs_and_licences_are_honoured():
    no = Document("x", "s", "u", metadata={"robots": "noindex, noai"})
    assert _judge(no, kind="opt_out").reason == "opt_out: robots"
    assert not _judge(Document("x", "s", "u", metadata={"tdm_reservation": "1"}), kind="opt_out").keep
    assert _judge(Document("x", "s", "u", metadata={"robots": "index"}), kind="opt_out").keep
    assert _judge(Document("x", "s", "u", "CC-BY-4.0"), kind="licence", allow=["cc-by*"]).keep
    assert not _judge(Document("x", "s", "u", "GPL-3.0"), kind="licence", allow=["cc-by*"]).keep
    assert not _judge(Document("x", "s", "u"), kind="licence", unknown="drop").keep


def test_language_is_found_offline_with_its_confidence():
    edited = _edit(
        "Der Hund läuft durch den Wald und bellt laut, weil er einen Hasen sieht.", language="", kind="language"
    )
    assert edited.document.language == "de"
    assert 0.9 < edited.document.confidence <= 1
    assert _edit("12345", language="", kind="language").document.language == ""
    assert not _judge(Document("x", "s", "u", language="de", confidence=0.3), kind="language_confidence").keep


def test_lines_seen_more_than_six_times_are_cut_everywhere():
    texts = [f"Own line {i:03d} {chr(97 + i)}\nMENU: home | About {i}\nlast" for i in range(7)]
    documents = [Document(text, "s", f"u{i}", language="en") for i, text in enumerate(texts)]
    cut = decide_on(documents, STEPS["line_dedup"], line_dedup.LineDedupConfig())
    spans = [c for decision in cut for c in decision.cuts]
    assert all(len(s) == 2 for s in spans)  # the menu, whose digit counts as any other, and "last"
    few = decide_on(documents[:6], STEPS["line_dedup"], line_dedup.LineDedupConfig())
    assert all(c is None for decision in few for c in decision.cuts)
    buckets = decide_on(documents, STEPS["line_dedup"], line_dedup.LineDedupConfig(bucket_documents=4))
    assert all(c is None for decision in buckets for c in decision.cuts)


def test_a_document_of_odd_tokens_is_far_from_its_group_only(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choice(vocabulary, 100)) for _ in range(200)] + [" ".join(f"q{i}" for i in range(100))]
    documents = [Document(text, "s", f"u{i}", language="en") for i, text in enumerate(texts)]
    config = TypeAdapter(StepEntry).validate_python({"kind": "divergence", "min_group": 50})
    assert kept(decide_on(documents, STEPS["divergence"], config, report=tmp_path)) == [True] * 200 + [False]
    assert json.loads((tmp_path / "groups.json").read_text())
    assert Path(tmp_path / "summary.json").exists()
