"""Curation beside datatrove: extraction, the whole way from WARC to filtered text, decisions compared.

Three parts, each on the same real pages (the article extraction benchmark's 181 pages, packed as one WARC file):
extractors against the gold text, by 4-gram precision and recall as that benchmark scores; and WARC -> extraction ->
Gopher, C4, FineWeb rules in megabytes of HTML a CPU-second, start of all processes included, datatrove running the same
steps on the same file in an environment of its own. datatrove has trafilatura alone; ours is measured with resiliparse,
which is the default, with trafilatura as fast as it goes, and as datatrove calls it (`precision`), so that the gain of
the extractor and that of everything else can be told apart. `filter_parity.py` compares the decisions. Last, what it
costs to count the tokens of a page, with a vocabulary of 100,000.

    python -m venv peers/datatrove
    peers/datatrove/bin/pip install "datatrove[io,processing]" spacy lxml_html_clean
    python benchmarks/curate.py --datatrove peers/datatrove/bin/python --json
    python benchmarks/curate.py --datatrove peers/datatrove/bin/python --quick --json
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

from puna.data.curate import CurateConfig, curate
from puna.data.extract.html import extract
from puna.data.places import open_binary
from puna.data.sources.warc_records import http_response, read_records
from puna.data.token_counts import TokenCounter

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAGES = HOME / "corpus" / "html_gold" / "article-extraction-benchmark.warc.gz"
GOLD = HOME / "corpus" / "html_gold" / "article-extraction-benchmark.gold.json.gz"
RANKS = HOME / "corpus" / "tokenizer" / "cl100k.tiktoken.gz"
RULES = {
    "gopher repetition": {"kind": "gopher_repetition"},
    "gopher quality": {"kind": "gopher_quality"},
    "c4": {"kind": "c4", "min_line_words": 3, "min_sentences": 5},
    "fineweb": {"kind": "fineweb", "max_duplicate_line_characters": 0.01},
}
"""Our steps with datatrove's numbers, where its differ from the papers'."""
EXTRACTORS = ("resiliparse", "trafilatura", "trafilatura precision")
PEER_NAME = "datatrove, trafilatura precision"

PEER = """
import json, resource, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers import JsonlWriter
path, out = sys.argv[1:3]
folder, name = path.rsplit("/", 1)
steps = [WarcReader(folder, glob_pattern=name, default_metadata={}), Trafilatura(favour_precision=True),
         GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter(), JsonlWriter(out)]
LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=out + "/logs").run()
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


def measure_counting(found: list[tuple[str, bytes, str]]) -> tuple[float, float]:
    """CPU-seconds of the start of a process that counts tokens, and milliseconds a page."""
    texts = [extract(html, charset, "resiliparse")["text"] for _, html, charset in found]
    with tempfile.TemporaryDirectory() as name:
        ranks = Path(name) / "ranks.tiktoken"
        ranks.write_bytes(gzip.decompress(RANKS.read_bytes()))
        start = time.process_time()
        counter = TokenCounter.open(ranks)
        counter.count(["a text"])
        begun = time.process_time()
        counter.count(texts)
    return begun - start, 1e3 * (time.process_time() - begun) / len(texts)


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


def peer(python: Path, path: Path, out: Path) -> float:
    """CPU-seconds of datatrove."""
    line = [str(python), "-c", PEER, str(path), str(out)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"datatrove failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["cpu_s"]


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="60 pages for the extractors, one round of one copy of the file"
    )
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
    if RANKS.is_file():
        begin, each = measure_counting(found)
        print(f"tokens  {begin:.2f} CPU-s to start, {each:.3f} ms a page")
    result["extract_f1"] = round(extractors["resiliparse"][2], 3)
    rounds, copies = (1, 1) if options.quick else (2, 4)
    has_peer = options.datatrove is not None and options.datatrove.exists()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crawl = folder / options.pages.name
        crawl.write_bytes(options.pages.read_bytes() * copies)  # members of gzip may follow each other
        seconds: dict[str, list[float]] = {}
        for k in range(rounds):
            for extractor in EXTRACTORS:
                ours = our_flow(crawl, folder / f"{extractor}-{k}", extractor)
                seconds.setdefault(f"puna, {extractor}", []).append(ours)
            if has_peer:
                seconds.setdefault(PEER_NAME, []).append(peer(options.datatrove, crawl, folder / f"peer-{k}"))
        medians = {who: statistics.median(values) for who, values in seconds.items()}
    for who, value in medians.items():
        print(f"flow    {who:34} {value:6.1f} CPU-s  {copies * html_mb / value:6.2f} MB of HTML/CPU-s")
    result["mb_per_cpu_s"] = round(copies * html_mb / medians["puna, resiliparse"], 2)
    for key, extractor in (("ratio_datatrove", EXTRACTORS[0]), ("ratio_datatrove_same_extractor", EXTRACTORS[2])):
        result[key] = round(medians[PEER_NAME] / medians[f"puna, {extractor}"], 2) if has_peer else None
    if not has_peer:
        print("datatrove is left out: give its interpreter with --datatrove")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
