"""Gopher's, C4's and FineWeb's rules beside datatrove's: every page on which they decide differently is explained.

Both sides judge the same texts with the same numbers. Where keep and drop differ, a small re-implementation of the rule
set is asked, in which every known difference of convention is a switch: with all switches on our side it must decide as
our step does on every page, with all on datatrove's side as datatrove does; the smallest set of switches that turns our
decision into theirs is the cause. A page that no set explains counts as unexplained, and the script ends with 1.

    python -m venv peers/datatrove
    peers/datatrove/bin/pip install "datatrove[io,processing]" spacy lxml_html_clean
    python benchmarks/filter_parity.py --datatrove peers/datatrove/bin/python --json
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from puna.data.document import Document
from puna.data.extract.html import extract
from puna.data.places import open_binary
from puna.data.sources.warc_records import http_response, read_records
from puna.data.steps import c4, fineweb, gopher
from puna.data.steps.registry import STEPS, StepEntry
from puna.data.steps.step import Edit

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAGES = HOME / "corpus" / "html_gold"
RULES: dict[str, dict[str, Any]] = {
    "gopher repetition": {"kind": "gopher_repetition"},
    "gopher quality": {"kind": "gopher_quality"},
    "c4": {"kind": "c4", "min_line_words": 3, "min_sentences": 5},
    "fineweb": {"kind": "fineweb", "max_duplicate_line_characters": 0.01},
}
"""Our steps with datatrove's numbers, where its differ from the papers'."""

PEER = """
import json, re, sys
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION, split_into_sentences, split_into_words
filters = {"gopher repetition": GopherRepetitionFilter(), "gopher quality": GopherQualityFilter(),
           "c4": C4QualityFilter(), "fineweb": FineWebQualityFilter()}
cites = re.compile(r"\\[\\d*]|\\[edit]|\\[citation needed]")
def asked(rule, text):
    try:
        result = rule.filter(Document(text=text, id="x"))
    except Exception as error:
        return "crash: " + type(error).__name__
    keep, why = result if isinstance(result, tuple) else (result, "")
    return "" if keep else why or "dropped"
pages = []
for text in json.load(open(sys.argv[1])):
    lines = {line.strip() for line in [*text.splitlines(), *text.split("\\n")]}
    lines |= {cites.sub("", line) for line in lines} | {cites.sub("", line).strip() for line in lines}
    pages.append({"decisions": {name: asked(rule, text) for name, rule in filters.items()},
                  "words": split_into_words(text, "en"),
                  "sentences": {line: len(split_into_sentences(line, "en")) for line in lines if line}})
json.dump({"pages": pages, "punctuation": sorted(PUNCTUATION_SET), "terminal": sorted(TERMINAL_PUNCTUATION)},
          open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Text:
    """A page with what datatrove's tokenizer makes of it.

    Attributes:
        text: The text.
        words: datatrove's words: spaCy's tokens.
        sentences: datatrove's number of sentences of each line.
        punctuation: Characters that datatrove counts as symbols.
        terminal: Characters that end a line for datatrove.
    """

    text: str
    words: list[str]
    sentences: dict[str, int]
    punctuation: frozenset[str]
    terminal: tuple[str, ...]


# ---- the rule sets with their switches: each takes the names of those that stand on datatrove's side ----

REPETITION = {
    "words": "words are spaCy's tokens, punctuation among them, not what white space separates",
    "unique n-gram": "a most frequent n-gram that occurs once counts",
    "spaces": "the characters of a top n-gram include the spaces between its words",
    "first of equals": "of equally frequent n-grams the first is taken, not the longest",
    "skipping": "after a repeated n-gram the next n words are skipped, so n-grams that begin there are never seen",
    "joined": "words are joined without a space before n-grams are compared",
    "blank lines": "lines of white space count, and white space around the text",
}


def repetition(page: Text, on: frozenset[str]) -> bool:
    """Whether Gopher's repetition rules drop a page."""
    limits = gopher.GopherRepetitionConfig()
    text = page.text if "blank lines" in on else page.text.strip()
    if not text:
        return "blank lines" in on
    for pattern, most, most_characters in (
        (r"\n{2,}", limits.max_duplicate_paragraphs, limits.max_duplicate_paragraph_characters),
        (r"\n+", limits.max_duplicate_lines, limits.max_duplicate_line_characters),
    ):
        if "blank lines" in on:
            parts = re.split(pattern, text.strip() if "2" in pattern else text)
        else:
            parts = [part for part in text.split("\n\n" if "2" in pattern else "\n") if part.strip()]
        repeats, characters = gopher.duplicates(parts)
        if repeats / len(parts) > most or characters / len(text) > most_characters:
            return True
    words = page.words if "words" in on else text.split()
    for n, limit in enumerate(limits.max_top_ngram, start=2):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if not grams:
            continue
        counts = Counter(grams)
        most = max(counts.values())
        best = [gram for gram, count in counts.items() if count == most]
        length = [sum(map(len, gram)) + (n - 1) * ("spaces" in on) for gram in best]
        covered = most * (length[0] if "first of equals" in on else max(length))
        if (most > 1 or "unique n-gram" in on) and covered / len(text) > limit:
            return True
    for n, limit in enumerate(limits.max_duplicate_ngrams, start=5):
        if covered_by_repeats(words, n, skipping="skipping" in on, joined="joined" in on) / len(text) > limit:
            return True
    return False


def covered_by_repeats(words: Sequence[str], n: int, *, skipping: bool, joined: bool) -> int:
    """Characters of words in n-grams that were seen before."""
    seen: set[Any] = set()
    covered = at = end = 0
    while at < len(words) - n + 1:
        gram: Any = "".join(words[at : at + n]) if joined else tuple(words[at : at + n])
        if gram in seen:
            covered += sum(map(len, words[max(at, end) : at + n]))
            end = at + n
            at += n if skipping else 1
        else:
            seen.add(gram)
            at += 1
    return covered


QUALITY = {
    "words": "words are spaCy's tokens, punctuation among them, not what white space separates",
    "symbols": "tokens of punctuation alone do not count for the number and mean length of words",
    "bullets": "bullets are • and -, with or without a space behind",
    "blank lines": "blank lines count as lines",
    "stop words": "a stop word counts only in lower case and free of punctuation",
}


def quality(page: Text, on: frozenset[str]) -> bool:
    """Whether Gopher's quality rules drop a page."""
    limits = gopher.GopherQualityConfig()
    text, words = page.text, page.words if "words" in on else page.text.split()
    counted = [w for w in words if "symbols" not in on or any(c not in page.punctuation for c in w)]
    if not counted or not limits.min_words <= len(counted) <= limits.max_words:
        return True
    if not limits.min_mean_word_length <= sum(map(len, counted)) / len(counted) <= limits.max_mean_word_length:
        return True
    if max(text.count("#"), text.count("...") + text.count("…")) / len(words) > limits.max_symbol_ratio:
        return True
    lines = [line.strip() for line in text.splitlines()]
    lines = lines if "blank lines" in on else [line for line in lines if line]
    bullets = ("•", "-") if "bullets" in on else gopher.BULLETS
    if sum(line.startswith(bullets) for line in lines) / len(lines) > limits.max_bullet_lines:
        return True
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > limits.max_ellipsis_lines:
        return True
    if sum(any(map(str.isalpha, w)) for w in words) / len(words) < limits.min_alphabetic_words:
        return True
    found = set(words)
    if "stop words" not in on:
        found |= {word.strip(".,;:!?\"'()[]").lower() for word in found}
    return len(found & set(limits.stop_words)) < limits.min_stop_words


C4 = {
    "sentences": "sentences are spaCy's",
    "end marks": "a line may end in ' but not in marks of other scripts or in ”",
    "citations": "a line is not stripped again after [1] is removed, and its words are counted before",
    "page rules": "lorem ipsum and { are looked for in lines that later rules would leave out",
    "line ends": "lines end at form feeds and Unicode line separators too",
}


def c4_rules(page: Text, on: frozenset[str]) -> bool:
    """Whether C4's rules drop a page."""
    sentences = 0
    ends = (".", "?", "!", '"', "'") if "end marks" in on else c4.END_MARKS
    for raw in page.text.splitlines() if "line ends" in on else page.text.split("\n"):
        line = raw.strip()
        cited = c4.CITATION.sub("", line)
        if "citations" in on:
            words, line = line.split(), cited
        else:
            words = cited.split()
            line = cited.strip() if "[" in line else line
        if not line or any(len(word) > 1000 for word in words):
            continue
        if not line.endswith(ends) or line.endswith("...") or len(words) < 3:
            continue
        lowered = line.lower()
        javascript, policy = "javascript" in lowered, any(phrase in lowered for phrase in c4.POLICY)
        if "page rules" in on:
            if "lorem ipsum" in lowered or ("{" in line and not javascript):
                return True
        elif not javascript and not policy and ("lorem ipsum" in lowered or "{" in line):
            return True
        if javascript or policy:
            continue
        sentences += page.sentences.get(line, 0) if "sentences" in on else c4.sentences_in(line)
    return sentences < 5


FINEWEB = {
    "words": "words are spaCy's tokens, punctuation among them, not what white space separates",
    "end marks": "quotation marks do not end a line, and marks of more scripts do",
    "white space": "white space behind the mark is not looked over",
}


def fineweb_rules(page: Text, on: frozenset[str]) -> bool:
    """Whether FineWeb's rules drop a page."""
    limits = fineweb.FineWebConfig(max_duplicate_line_characters=0.01)
    lines = [line for line in page.text.split("\n") if line.strip()]
    if not lines:
        return True
    ends = page.terminal if "end marks" in on else fineweb.END_MARKS
    shown = lines if "white space" in on else [line.rstrip() for line in lines]
    if sum(line.endswith(ends) for line in shown) / len(lines) < limits.min_end_marks:
        return True
    if sum(len(line) <= limits.short_line_characters for line in lines) / len(lines) > limits.max_short_lines:
        return True
    characters = gopher.duplicates(lines)[1]
    if characters / max(1, len(page.text.replace("\n", ""))) > limits.max_duplicate_line_characters:
        return True
    words = page.words if "words" in on else page.text.split()
    return page.text.count("\n") / max(1, len(words)) > limits.max_newlines


MODELS: dict[str, tuple[Callable[[Text, frozenset[str]], bool], dict[str, str]]] = {
    "gopher repetition": (repetition, REPETITION),
    "gopher quality": (quality, QUALITY),
    "c4": (c4_rules, C4),
    "fineweb": (fineweb_rules, FINEWEB),
}


def decide(text: str, values: dict[str, Any]) -> str:
    """Our step's reason, or "" when it keeps."""
    config = TypeAdapter(StepEntry).validate_python(values)
    step, document = STEPS[values["kind"]], Document(text, "s", "u", language="en")
    if isinstance(step, Edit):
        verdict = step.edit([document], config)[0].verdict
    else:
        verdict = step.judge(step.measure([document], config)[0], config)  # type: ignore[union-attr]
    return "" if verdict.keep else verdict.reason


def cause(page: Text, rule: str, theirs: bool) -> tuple[str, ...] | None:
    """The smallest set of switches that gives datatrove's decision; None where there is none."""
    model, switches = MODELS[rule]
    for n in range(1, len(switches) + 1):
        for chosen in combinations(switches, n):
            if model(page, frozenset(chosen)) == theirs:
                return chosen
    return None


def read_texts(folder: Path, limit: int | None) -> list[str]:
    """Texts of the pages in a folder of WARC files, or in one file."""
    found = []
    for path in sorted(folder.glob("*.warc.gz")) if folder.is_dir() else [folder]:
        for record in read_records(partial(open_binary, path), lambda *_: None):
            if record.kind == "response" and (response := http_response(record.block)):
                charset = response.headers.get("content-type", "").partition("charset=")[2]
                found.append(extract(response.body, charset, "resiliparse")["text"])
    return [text for text in found if text.strip()][:limit]


def ask_datatrove(python: Path, texts: list[str]) -> tuple[list[dict[str, str]], list[Text]]:
    """Its decision on each text, and the texts with its words and sentences."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "texts.json", Path(name) / "answers.json"
        source.write_text(json.dumps(texts))
        done = subprocess.run([str(python), "-c", PEER, str(source), str(target)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"datatrove failed:\n{done.stderr[-2000:]}")
        said = json.loads(target.read_text())
    punctuation, terminal = frozenset(said["punctuation"]), tuple(said["terminal"])
    pages = [
        Text(text, page["words"], page["sentences"], punctuation, terminal)
        for text, page in zip(texts, said["pages"], strict=True)
    ]
    return [page["decisions"] for page in said["pages"]], pages


def compare(rule: str, texts: list[Text], theirs: list[str]) -> dict[str, Any]:
    """What differs under a rule set, and why."""
    model, switches = MODELS[rule]
    causes, pairs, wrong = Counter[tuple[str, ...]](), Counter[tuple[str, str]](), Counter[str]()
    unexplained = differ = 0
    for page, their in zip(texts, theirs, strict=True):
        ours = decide(page.text, RULES[rule])
        wrong["ours"] += model(page, frozenset()) != bool(ours)
        wrong["theirs"] += model(page, frozenset(switches)) != bool(their)
        if bool(ours) == bool(their):
            continue
        differ += 1
        pairs[ours or "kept", their or "kept"] += 1
        found = cause(page, rule, bool(their))
        if found is None:
            unexplained += 1
        else:
            causes[found] += 1
    print(f"{rule}: {differ} of {len(texts)} pages differ, {unexplained} unexplained")
    print(f"  the re-implementation errs on {wrong['ours']} of our decisions and {wrong['theirs']} of datatrove's")
    for (mine, their), n in pairs.most_common():
        print(f"  {n:4}  ours: {mine:48} datatrove: {their}")
    for chosen, n in causes.most_common():
        print(f"  {n:4}  because in datatrove " + "; and ".join(switches[name] for name in chosen))
    return {"differ": differ, "unexplained": unexplained, "wrong": wrong["ours"] + wrong["theirs"]}


def main() -> None:
    """Compare and explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first 100 pages")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--pages", type=Path, default=PAGES, help="folder of WARC files, or one file")
    parser.add_argument("--datatrove", type=Path, help="interpreter of an environment that has datatrove")
    options = parser.parse_args()
    if not options.datatrove or not options.datatrove.exists():
        print("skipped: give the interpreter of an environment that has datatrove with --datatrove")
        if options.json:
            print(json.dumps({"pages": 0, "unexplained": None}))
        return
    if not options.pages.exists():
        raise SystemExit(f"{options.pages} is not there; give WARC files with --pages")
    decisions, texts = ask_datatrove(options.datatrove, read_texts(options.pages, 100 if options.quick else None))
    found = {rule: compare(rule, texts, [row[rule] for row in decisions]) for rule in RULES}
    unexplained = sum(result["unexplained"] + result["wrong"] for result in found.values())
    if options.json:
        differ = {rule: result["differ"] for rule, result in found.items()}
        print(json.dumps({"pages": len(texts), "differ": differ, "unexplained": unexplained}))
    if unexplained:
        sys.exit(1)


if __name__ == "__main__":
    main()
