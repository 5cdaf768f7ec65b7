"""Curation beside datatrove: extraction, the whole way from WARC to filtered text, decisions compared.

Three parts, each on the same real pages (the article extraction benchmark's 181 pages, packed as one WARC file):
extractors against the gold text, by 4-gram precision and recall as that benchmark scores; WARC -> extraction -> Gopher,
C4, FineWeb rules in megabytes of WARC content a CPU-second, datatrove running the same steps on the same file in an
environment of its own; and the decision of each rule set on each page beside datatrove's, differences counted by rule.

    python -m venv peers/datatrove && peers/datatrove/bin/pip install "datatrove[io,processing]" spacy
    python benchmarks/curate.py --pages PAGES.warc.gz --gold GOLD.json.gz --datatrove peers/datatrove/bin/python
    python benchmarks/curate.py --quick --json
"""

import argparse
import gzip
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from puna.data.curate import CurateConfig, curate
from puna.data.document import Document
from puna.data.extract.html import extract
from puna.data.places import open_binary
from puna.data.sources.warc_records import http_response, read_records
from puna.data.steps.registry import STEPS, StepEntry
from puna.data.steps.step import Edit

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAGES = HOME / "corpus" / "html_gold" / "article-extraction-benchmark.warc.gz"
GOLD = HOME / "corpus" / "html_gold" / "article-extraction-benchmark.gold.json.gz"
RULES = {
    "gopher repetition": {"kind": "gopher_repetition"},
    "gopher quality": {"kind": "gopher_quality"},
    "c4": {"kind": "c4", "min_line_words": 3, "min_sentences": 5},
    "fineweb": {"kind": "fineweb", "max_duplicate_line_characters": 0.01},
}
"""Our steps with datatrove's numbers, where its differ from the papers'."""

PEER = """
import json, resource, sys
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
filters = {"gopher repetition": GopherRepetitionFilter(), "gopher quality": GopherQualityFilter(),
           "c4": C4QualityFilter(), "fineweb": FineWebQualityFilter()}
mode, path, out = sys.argv[1:4]
if mode == "flow":
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    folder, name = path.rsplit("/", 1)
    steps = [WarcReader(folder, glob_pattern=name, default_metadata={}), Trafilatura(favour_precision=True),
             *filters.values(), JsonlWriter(out)]
    LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=out + "/logs").run()
else:
    answers = []
    for text in json.load(open(path)):
        row = {}
        for name, rule in filters.items():
            try:
                result = rule.filter(Document(text=text, id="x"))
                keep, why = result if isinstance(result, tuple) else (result, "")
                row[name] = "" if keep else why
            except Exception as error:
                row[name] = f"crash: {type(error).__name__}"
        answers.append(row)
    json.dump(answers, open(out, "w"))
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"cpu_s": sum(u.ru_utime + u.ru_stime for u in usage)}))
"""


def pages(path: Path, limit: int | None) -> list[tuple[str, bytes, str]]:
    """Address, HTML and declared charset of each page."""
    found = []
    for record in read_records(partial(open_binary, path), lambda *_: None):
        if record.kind == "response" and (response := http_response(record.block)):
            charset = response.headers.get("content-type", "").partition("charset=")[2]
            found.append((record.url, response.body, charset))
    return found[:limit]


def grams(text: str) -> Counter[tuple[str, ...]]:
    """4-grams of the words, as the article extraction benchmark counts them."""
    words = re.findall(r"\w+", text)
    return Counter(zip(*(words[i:] for i in range(4)), strict=False)) if len(words) >= 4 else Counter([tuple(words)])


def score(texts: list[str], gold: list[str]) -> tuple[float, float, float]:
    """Mean precision, mean recall, their F1."""
    precision, recall = [], []
    for text, right in zip(texts, gold, strict=True):
        a, b = grams(text), grams(right)
        common = sum((a & b).values())
        precision.append(common / max(1, sum(a.values())))
        recall.append(common / max(1, sum(b.values())))
    p, r = statistics.mean(precision), statistics.mean(recall)
    return p, r, 2 * p * r / (p + r)


def measure_extractors(found: list[tuple[str, bytes, str]], gold: dict[str, str]) -> dict[str, tuple[float, ...]]:
    """For each extractor precision, recall, F1 and MB of HTML a CPU-second."""
    results = {}
    chosen = [page for page in found if page[0] in gold]
    size = sum(len(html) for _, html, _ in chosen) / 1e6
    for extractor in ("resiliparse", "resiliparse whole page", "trafilatura", "trafilatura precision"):
        start = time.process_time()
        texts = [extract(html, charset, extractor)["text"] for _, html, charset in chosen]
        seconds = time.process_time() - start
        results[extractor] = (*score(texts, [gold[url] for url, _, _ in chosen]), size / seconds)
    return results


def our_flow(path: Path, folder: Path, extractor: str) -> float:
    """CPU-seconds of the whole way in a process of its own, its start and its extractor included."""
    line = [sys.executable, __file__, "--child", str(path), str(folder), extractor]
    out = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])["cpu_s"]


def child(path: str, folder: str, extractor: str) -> None:
    """The flow, then the CPU-seconds of this process and its children."""
    source = {"kind": "warc", "name": "pages", "path": path, "language": "en"}
    source["extraction"] = {"extractor": extractor}  # type: ignore[assignment]
    curate(CurateConfig.model_validate({"sources": [source], "steps": [*RULES.values()]}), folder, workers=1)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"cpu_s": sum(u.ru_utime + u.ru_stime for u in usage)}))


def peer(python: Path, mode: str, path: Path, out: Path) -> float:
    """CPU-seconds of datatrove."""
    line = [str(python), "-c", PEER, mode, str(path), str(out)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"datatrove failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["cpu_s"]


def decide(text: str, values: dict) -> str:  # type: ignore[type-arg]
    """Our rule set's reason, or "" when it keeps."""
    config = TypeAdapter(StepEntry).validate_python(values)
    step, document = STEPS[values["kind"]], Document(text, "s", "u", language="en")
    if isinstance(step, Edit):
        verdict = step.edit([document], config)[0].verdict
    else:
        verdict = step.judge(step.measure([document], config)[0], config)  # type: ignore[union-attr]
    return "" if verdict.keep else verdict.reason


def compare_decisions(texts: list[str], python: Path, folder: Path) -> dict[str, Counter[tuple[str, str]]]:
    """For each rule set how often which pair of reasons, ours and datatrove's, came up where keep and drop differ."""
    (folder / "texts.json").write_text(json.dumps(texts))
    peer(python, "decide", folder / "texts.json", folder / "answers.json")
    theirs = json.loads((folder / "answers.json").read_text())
    differences = {name: Counter[tuple[str, str]]() for name in RULES}
    for text, row in zip(texts, theirs, strict=True):
        for name, values in RULES.items():
            ours = decide(text, values)
            if bool(ours) != bool(row[name]):
                differences[name][ours or "kept", row[name] or "kept"] += 1
    return differences


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 pages for the extractors, one round")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--pages", type=Path, default=PAGES, help="WARC file of pages")
    parser.add_argument("--gold", type=Path, default=GOLD, help="gold texts: {id: {url, articleBody}}")
    parser.add_argument("--datatrove", type=Path, help="interpreter of an environment that has datatrove")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if not options.pages.is_file():
        raise SystemExit(f"{options.pages} is not there; give a WARC file with --pages")
    found = pages(options.pages, None)
    html_mb = sum(len(html) for _, html, _ in found) / 1e6
    with gzip.open(options.gold, "rt") as file:
        raw = json.load(file)
    gold = {entry["url"]: entry["articleBody"] for entry in raw.values()}
    result: dict[str, float | None] = {}
    extractors = measure_extractors(found[:60] if options.quick else found, gold)
    for name, (p, r, f1, speed) in extractors.items():
        print(f"extract {name:24} precision {p:.3f}  recall {r:.3f}  F1 {f1:.3f}  {speed:6.1f} MB of HTML/CPU-s")
    result["extract_f1"] = round(extractors["resiliparse"][2], 3)
    rounds = 1 if options.quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds: dict[str, list[float]] = {}
        for k in range(rounds):
            for extractor in ("resiliparse", "trafilatura"):
                ours = our_flow(options.pages, folder / f"{extractor}-{k}", extractor)
                seconds.setdefault(f"puna, {extractor}", []).append(ours)
            if options.datatrove and options.datatrove.exists():
                theirs = peer(options.datatrove, "flow", options.pages, folder / f"peer-{k}")
                seconds.setdefault("datatrove, trafilatura", []).append(theirs)
        medians = {who: statistics.median(values) for who, values in seconds.items()}
        for who, value in medians.items():
            print(f"flow    {who:24} {value:6.1f} CPU-s  {html_mb / value:6.2f} MB of HTML/CPU-s")
        result["mb_per_cpu_s"] = round(html_mb / medians["puna, resiliparse"], 2)
        result["ratio_datatrove"] = None
        if "datatrove, trafilatura" in medians:
            result["ratio_datatrove"] = round(medians["datatrove, trafilatura"] / medians["puna, resiliparse"], 2)
            texts = [extract(html, charset, "resiliparse")["text"] for _, html, charset in found]
            for rule, differences in compare_decisions(texts, options.datatrove, folder).items():
                print(f"decide  {rule:24} {sum(differences.values())} of {len(texts)} pages differ")
                for (mine, theirs), n in differences.most_common(6):
                    print(f"        {n:4}  ours: {mine:44} datatrove: {theirs}")
        else:
            print("datatrove is left out: give its interpreter with --datatrove")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
