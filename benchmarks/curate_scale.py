"""What curation costs as the input grows: CPU and memory of each stage at 1x, 4x and 16x, projected to 15T tokens.

Real pages are packed as WARC; beyond the first round every word of their text is replaced by one drawn from all pages,
so that pages keep their markup, length and language but are no copies. The steps are those of
`recipes/curate/llama3.toml` with semantic and substring deduplication behind them, then packing to shards, on one core.
Memory is the peak of anonymous memory, extractor included, read from outside every 10 ms; a stage that needs more than
quarter as much again at 16x as at 4x is said to grow. CPU-seconds a byte are those of what 16x has more than 4x, so
that what is done once does not count.

The projection takes Common Crawl's own figures for the input (a snapshot: `--pages` pages in `--tb` TB of compressed
WARC) and FineWeb's yield (15T tokens from 96 snapshots, Penedo et al. 2024), not the yield of these pages, which were
chosen for being articles. It counts cores of this machine at full use, and neither download nor failures.

    python benchmarks/curate_scale.py --json
    python benchmarks/curate_scale.py --quick --json      a sixth of the pages
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from puna.data import curate as flow
from puna.data.curate import CurateConfig, curate
from puna.data.places import open_binary
from puna.data.shard_writer import ShardsConfig, build_shards
from puna.data.sources.warc_records import http_response, read_records
from puna.data.steps.registry import STEPS
from puna.data.steps.step import Barrier
from puna.data.warc_writer import Page, write_warc
from puna.tokenizer.train import train_bpe

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAGES = HOME / "corpus" / "html_gold" / "article-extraction-benchmark.warc.gz"
RECIPE = Path(__file__).parents[1] / "recipes" / "curate" / "llama3.toml"
SIZES = (1, 4, 16)
GROWS = 1.25
_TEXT = re.compile(r"(<(?:script|style)\b.*?</(?:script|style)\s*>|<[^>]*>)|(?<![\w<])([^\W\d_]{2,})", re.DOTALL | re.I)


def read_pages(path: Path) -> list[tuple[str, str]]:
    """Address and HTML of each page."""
    found = []
    for record in read_records(partial(open_binary, path), lambda *_: None):
        if record.kind == "response" and (response := http_response(record.block)):
            found.append((record.url, response.body.decode("utf-8", "replace")))
    return found


def another(page: str, words: list[str], rng: random.Random) -> str:
    """The page with other words."""
    return _TEXT.sub(lambda match: match.group(1) or rng.choice(words), page)


def write_input(folder: Path, pages: list[tuple[str, str]], times: int) -> tuple[int, int]:
    """Write so many rounds of the pages, a file each; bytes of HTML, bytes of WARC."""
    folder.mkdir(parents=True)
    words = [word for _, page in pages for _, word in _TEXT.findall(page) if word]
    html = 0
    for k in range(times):
        rng = random.Random(k)
        made = [Page(f"{url}?round={k}", another(page, words, rng) if k else page) for url, page in pages]
        html += sum(len(page.html.encode()) for page in made)
        write_warc(folder / f"part-{k:03d}.warc.gz", made, date="2024-04-18T00:00:00Z")
    return html, sum(path.stat().st_size for path in folder.iterdir())


# ---- the process that is measured ----


class Stages:
    """Says which stage runs, and what CPU each took."""

    def __init__(self, note: Path) -> None:
        self.note, self.seconds = note, dict[str, float]()
        self.open = ["start"]

    def named(self, name: Callable[..., str], call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function as a stage; a stage inside another is taken out of it."""

        def run(*arguments: Any, **named: Any) -> Any:
            self.open.append(name(*arguments))
            self.note.write_text(self.open[-1])
            before, inside = cpu(), sum(self.seconds.values())
            try:
                result = call(*arguments, **named)
                return list(result) if hasattr(result, "__next__") else result
            finally:
                mine = cpu() - before - (sum(self.seconds.values()) - inside)
                stage = self.open.pop()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + mine
                self.note.write_text(self.open[-1])

        return run


def cpu() -> float:
    """CPU-seconds of this process and the children that ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def child(crawl: Path, out: Path, note: Path) -> None:
    """Curate, pack, print what it took."""
    stages = Stages(note)
    for kind, step in STEPS.items():
        if isinstance(step, Barrier):
            STEPS[kind] = replace(step, decide=stages.named(lambda *_, kind=kind: f"barrier {kind}", step.decide))
    flow._Flow.map = stages.named(lambda _, this, *__: f"pass {this.index}", flow._Flow.map)  # type: ignore[method-assign]
    steps = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["steps"]
    place = next(i for i, step in enumerate(steps) if step["kind"] == "line_dedup")
    steps[place:place] = [{"kind": "semantic"}]
    steps.append({"kind": "substring"})
    source = {"kind": "warc", "name": "crawl", "path": str(crawl), "task_bytes": 8 << 20}
    peak_disk = 0

    def measure_disk(corpus: Any) -> None:
        nonlocal peak_disk
        peak_disk = sum({p.stat().st_ino: p.stat().st_size for p in corpus.path.rglob("*") if p.is_file()}.values())

    config = CurateConfig.model_validate({"sources": [source], "steps": steps})
    corpus = curate(config, out / "corpus", workers=1, finishing=measure_disk)
    tokenizer = train_bpe(corpus.texts(bytes_per_source=4 << 20), vocab_size=8192)
    pack = stages.named(lambda *_: "pack", build_shards)
    shards = pack(corpus, tokenizer, out / "shards", ShardsConfig(), workers=1)
    kept = sum(source["kept"]["bytes"] for source in corpus.manifest["sources"].values())
    size = sum(p.stat().st_size for p in (corpus.path / "documents").iterdir())
    tokens = sum(shard.n_tokens for shard in shards.shards.values())
    print(json.dumps({"cpu": stages.seconds, "kept": kept, "size": size, "tokens": tokens, "peak_disk": peak_disk}))


# ---- the process that measures ----


@dataclass(frozen=True)
class Measured:
    """One size: CPU-seconds and peak MiB by stage, and sizes in bytes."""

    html: int
    warc: int
    cpu: dict[str, float]
    memory: dict[str, float]
    kept: int
    size: int
    tokens: int
    peak_disk: int


def run(folder: Path, pages: list[tuple[str, str]], times: int) -> Measured:
    """Do one size in a process of its own."""
    html, warc = write_input(folder / "crawl", pages, times)
    note = folder / "stage"
    note.write_text("start")
    line = [sys.executable, __file__, "--child", str(folder / "crawl"), str(folder), str(note)]
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(line, stdout=out)
        peaks: dict[str, float] = {}
        while process.poll() is None:
            stage = note.read_text() or "start"
            peaks[stage] = max(peaks.get(stage, 0), anonymous(process.pid) / 2**20)
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"the measured process failed with {process.returncode}")
    said = json.loads((folder / "out").read_text().splitlines()[-1])
    return Measured(html, warc, memory=peaks, **said)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = int(line.split()[1]) << 10
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(anonymous(int(child)) for child in children)


def main() -> None:
    """Measure the sizes, print the table and the projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sixth of the pages")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--data", type=Path, default=PAGES, help="WARC file of pages")
    parser.add_argument("--snapshots", type=float, default=96, help="Common Crawl snapshots behind 15T tokens")
    parser.add_argument("--pages", type=float, default=2.7e9, help="pages of a snapshot")
    parser.add_argument("--tb", type=float, default=86, help="TB of compressed WARC of a snapshot")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if not options.data.is_file():
        raise SystemExit(f"{options.data} is not there; name a WARC file of pages with --data")
    pages = read_pages(options.data)
    pages = pages[::6] if options.quick else pages
    with tempfile.TemporaryDirectory() as name:
        results = [run(Path(name) / f"x{times}", pages, times) for times in SIZES]
    middle, last = results[1:]
    n_pages = len(pages) * (SIZES[2] - SIZES[1])
    html, warc = last.html - middle.html, last.warc - middle.warc
    more = {stage: max(0.0, seconds - middle.cpu.get(stage, 0.0)) for stage, seconds in last.cpu.items()}
    sizes = ", ".join(f"{r.html / 1e6:.0f} MB of HTML ({r.warc / 1e6:.0f} MB of WARC)" for r in results)
    print(f"input: {sizes}")
    print(f"{'stage':20} {'CPU-s at 16x':>12} {'CPU-s a GB of HTML more':>24}   peak MiB at {SIZES}")
    growing = []
    for stage, seconds in last.cpu.items():
        peaks = [r.memory.get(stage, 0.0) for r in results]
        if peaks[1] and peaks[2] > GROWS * peaks[1]:
            growing.append(stage)
        shown = "  ".join(f"{peak:7.0f}" for peak in peaks)
        print(f"{stage:20} {seconds:12.2f} {more[stage] / html * 1e9:24.1f}   {shown}")
    total = sum(more.values())
    per_tb = total / 3600 / warc * 1e12
    per_page = total / n_pages
    print(
        f"all: {total / html * 1e9:.0f} CPU-s a GB of HTML more, {1e3 * per_page:.1f} ms a page, {per_tb:,.0f} "
        f"core-hours a TB of compressed WARC of these pages; memory grows: {', '.join(growing) or 'nowhere'}"
    )
    in_pages, in_tb = options.snapshots * options.pages, options.snapshots * options.tb
    hours = in_pages * per_page / 3600
    text = 15e12 * last.kept / last.tokens
    corpus, shards = text * last.size / last.kept / 1e12, 15e12 * 4 / 1e12
    work = in_pages * last.peak_disk / (len(pages) * SIZES[2]) / 1e12
    print(
        f"15T tokens: {options.snapshots:g} snapshots, {in_pages:.2e} pages, {in_tb:,.0f} TB of WARC: "
        f"{hours:,.0f} core-hours ({hours / 24 / 10_000:.1f} days on 10,000 cores), {hours / in_tb:,.0f} a TB; corpus "
        f"{corpus:,.0f} TB, shards of uint32 {shards:,.0f} TB; all at once, {work:,.0f} TB while it works"
    )
    if options.json:
        result = {
            "core_hours_per_tb": round(hours / in_tb, 1),
            "core_hours_per_tb_of_these_pages": round(per_tb, 1),
            "peak_mib": {stage: [round(r.memory.get(stage, 0.0)) for r in results] for stage in last.cpu},
            "grows": growing,
            "core_hours_15t": round(hours),
            "corpus_tb_15t": round(corpus, 1),
            "shards_tb_15t": round(shards, 1),
            "work_tb_15t": round(work),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
