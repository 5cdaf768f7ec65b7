"""`puna data`: look at corpora and shards, trace tokens to records, export, cut curation into jobs."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from puna.cli import data_clusters
from puna.cli.stage_verb import HELP, examples, recipe_arguments

_WHOLE_TABLES, _LINES = 3, 40  # of what `why` finds


@click.group(
    "data",
    context_settings=HELP,
    epilog=examples(
        "puna data stats runs/demo/corpus",
        "puna data show runs/demo/corpus --dropped-by length",
        "puna data why runs/demo/corpus 3f2a9c",
        "puna data trace runs/demo/shards/exercises-00000-train-000:1000",
    ),
)
def command() -> None:
    """Look at corpora and shards: what was dropped, why, where from."""


command.add_command(data_clusters.command)


@command.command(
    "show", context_settings=HELP, epilog=examples("puna data show runs/demo/corpus --dropped-by exact --limit 3")
)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--dropped-by", "rule", default=None, help="A reason, or its step: `c4`, `03-c4`, `lorem ipsum`.")
@click.option("--edited-by", "editor", default=None, help="A step that changes texts: `pii`, `05-line_dedup`.")
@click.option("--limit", default=5, show_default=True, type=click.IntRange(min=1), help="How many documents.")
@click.option("--characters", default=600, show_default=True, type=click.IntRange(min=1), help="Of each text.")
def show(corpus: Path, rule: str | None, editor: str | None, limit: int, characters: int) -> None:
    """Print documents: the first that were kept, those that a rule dropped, or those that a step edited."""
    from itertools import islice

    from puna.core import console
    from puna.core.errors import UsageError
    from puna.data import look
    from puna.data.corpus import Corpus

    opened = Corpus.open(corpus)
    if rule is not None and editor is not None:
        raise UsageError("--dropped-by and --edited-by are two questions: give one of them")
    if editor is not None:
        for document, counts in islice(look.edited_by(opened, editor), limit):
            did = ", ".join(f"{n:.0f} {what}" for what, n in counts.items())
            console.say(f"== {document.id}  {document.url}\n-- {did}; the text as it is now:")
            console.say(f"{document.text[:characters]}\n")
        return
    if rule is None:
        for document in islice(opened.documents(), limit):
            console.say(f"== {document.id}  {document.url}\n{document.text[:characters]}\n")
        return
    for entry in islice(look.dropped_by(opened, rule), limit):
        twin = f"  repeats {entry.twin}" if entry.twin else ""
        console.say(f"== {entry.document.id}  {entry.document.url}\n-- {entry.reason}: {entry.value:.6g}{twin}")
        console.say(f"{entry.document.text[:characters]}\n")


@command.command("why", context_settings=HELP, epilog=examples("puna data why runs/demo/corpus 3f2a9c"))
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("document_id")
def why(corpus: Path, document_id: str) -> None:
    """Say what became of a document, by the beginning of its id or by its URL, with everything measured."""
    from puna.core import console
    from puna.data import look
    from puna.data.corpus import Corpus
    from puna.data.document import record_place

    found = look.why(Corpus.open(corpus), document_id)
    fates = [
        "kept" if row["step"] == 0 else f"dropped by step {row['step']}: {row['reason']} ({row['value']:.6g})"
        for row in found
    ]
    if len({(row["id"], row["file"], row["offset"]) for row in found}) > _WHOLE_TABLES:
        for row, fate in zip(found[:_LINES], fates, strict=False):
            console.say(f"{row['id']}  {record_place(row['file'], row['offset'])}  {row['url']}  {fate}")
        more = f", {_LINES} are shown" if len(found) > _LINES else ""
        console.say(f"{len(found)} documents{more}; more of the id shows one of them with everything measured")
        return
    for row, fate in zip(found, fates, strict=True):
        rows = [(key, row[key]) for key in ("id", "url", "task", "file", "offset", "language", "bytes")]
        rows.insert(6, ("confidence", f"{row['confidence'] or 0:.4g}"))
        twin = f"{row['twin']}  {row['twin_place']}".strip()
        rows += [("fate", fate), *([("repeats", twin)] if twin else [])]
        rows += sorted((name, f"{value:.6g}") for name, value in row["scores"].items())
        console.table("", ["what", "value"], rows)


@command.command(
    "trace",
    context_settings=HELP,
    epilog=examples("puna data trace runs/demo/shards/exercises-00000-train-000:1000 --bytes"),
)
@click.argument("token", metavar="SHARD:OFFSET")
@click.option("--bytes", "show_bytes", is_flag=True, help="Print the bytes of the record that it was read from.")
@click.option("--root", type=click.Path(), help="Where the source lies now; found through lineage unless given.")
def trace(token: str, show_bytes: bool, root: str | None) -> None:
    """Lead from a token back to its document, its URL and the bytes of its record."""
    from puna.core import console
    from puna.core.errors import UsageError
    from puna.data import look
    from puna.data.shards import ShardSet
    from puna.stages.origin import source_root

    place, colon, offset = token.rpartition(":")
    if not colon or not offset.isdigit():
        raise UsageError(f"{token!r} is not SHARD:OFFSET, for example runs/demo/shards/exercises-00000-train-000:1000")
    folder, name = Path(place).parent, Path(place).name
    found = ShardSet.open(folder, verify="sizes").trace(name, int(offset))
    document = found.document
    rows = [(key, value) for key, value in document.items() if key != "metadata" and value not in ("", -1)]
    rows += [(f"metadata.{key}", value) for key, value in document["metadata"].items()]
    console.table("", ["what", "value"], [*rows, ("tokens in shard", f"{found.start} to {found.stop - 1}")])
    if show_bytes:
        where = root or source_root(folder, document["source"])
        sys.stdout.flush()
        sys.stdout.buffer.write(look.record_bytes(where, document["file"], document["offset"]))
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


@command.command("stats", context_settings=HELP, epilog=examples("puna data stats runs/demo/corpus"))
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(corpus: Path, as_json: bool) -> None:
    """Print the funnel, languages, licences, hosts and lengths of a corpus."""
    from puna.core import console
    from puna.data import look
    from puna.data.corpus import Corpus
    from puna.data.funnel import as_json as funnel_as_json
    from puna.data.funnel import columns, funnel

    opened = Corpus.open(corpus)
    tables = look.stats(opened)
    if as_json:
        console.write(json.dumps({"funnel": funnel_as_json(opened), **tables}, ensure_ascii=False) + "\n")
        return
    console.table("funnel", columns(opened), funnel(opened))
    heads: dict[str, list[str]] = {"hosts": ["host", "documents"], "lengths": ["quantile", "bytes"]}
    for name, rows in tables.items():
        console.table(f"\n{name}", heads.get(name, [name[:-1], "documents", "bytes"]), rows[:40])


@command.command(
    "export", context_settings=HELP, epilog=examples("puna data export runs/demo/shards runs/demo/megatron/text")
)
@click.argument("shards", type=click.Path(path_type=Path))
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option("--to", "form", default="megatron", type=click.Choice(["megatron"]), help="The form.", show_default=True)
@click.option("--source", "sources", multiple=True, help="Take only this source; can be given several times.")
@click.option("--split", default="train", type=click.Choice(["train", "held_out"]), show_default=True)
def export(shards: Path, prefix: Path, form: str, sources: tuple[str, ...], split: Any) -> None:
    """Write shards as PREFIX.bin and PREFIX.idx for Megatron."""
    from puna.core import console
    from puna.data import megatron
    from puna.data.shards import ShardSet

    n = megatron.export(ShardSet.open(shards), prefix, sources=sources, split=split)
    console.say(f"{form} {prefix}.bin, {prefix}.idx: {n} documents")


@command.command(
    "crawl-list",
    context_settings=HELP,
    epilog=examples("puna data crawl-list CC-MAIN-2024-18 --sample 8", "puna data crawl-list warc.paths.gz"),
)
@click.argument("crawl")
@click.option("--files", default="warc", type=click.Choice(["warc", "wet"]), show_default=True)
@click.option("--sample", type=click.IntRange(min=1), help="A repeatable sample of so many files.")
def crawl_list(crawl: str, files: str, sample: int | None) -> None:
    """Print the paths of a Common Crawl list: by the crawl's name, an address, or a file."""
    from puna.core import console
    from puna.data.sources import crawl_list as lists

    for path in lists.choose(lists.read_list(lists.list_address(crawl, files)), sample):
        console.write(path + "\n")


@command.command(
    "part", context_settings=HELP, epilog=examples("puna data part my-corpus.toml --index 0 --part 3 --parts 64")
)
@recipe_arguments
@click.option("--index", required=True, type=click.IntRange(min=0), help="Which pass, from 0.")
@click.option("--part", required=True, type=click.IntRange(min=0), help="Which share of its tasks, from 0.")
@click.option("--parts", required=True, type=click.IntRange(min=1), help="How many shares.")
def part(recipe: str, overrides: tuple[str, ...], index: int, part: int, parts: int) -> None:
    """Do one share of one pass of a curation: what one job of an array runs. `puna curate` then finishes."""
    from puna.core import config
    from puna.data.curate import curate_part
    from puna.stages import curate, recipes

    chosen = config.load(curate.CurateRecipe, recipes.find_recipe(recipe), overrides).config
    curate_part(curate.settings(chosen), chosen.out, index=index, part=part, parts=parts)


@command.command("slurm", context_settings=HELP, epilog=examples("puna data slurm my-corpus.toml --parts 64 > job.sh"))
@recipe_arguments
@click.option("--parts", default=64, show_default=True, type=click.IntRange(min=1), help="Jobs of each array.")
def slurm(recipe: str, overrides: tuple[str, ...], parts: int) -> None:
    """Print a shell script that submits a curation to Slurm: an array for each pass, then the end."""
    from puna.core import config, console
    from puna.data.curate import plan
    from puna.stages import curate, recipes

    path = recipes.find_recipe(recipe)
    chosen = config.load(curate.CurateRecipe, path, overrides).config
    passes = plan(curate.settings(chosen)).passes
    console.write(curate.slurm_script(path, overrides, n_passes=len(passes), parts=parts))
