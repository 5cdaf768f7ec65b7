"""The sections of the report: each reads finished run folders and says what is in them, with the figures behind.

Nothing is measured here and nothing is rounded before it is compared; a figure on the page stands in a file of a run.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import console, files
from puna.core.run_folder import RunFolder
from puna.data.corpus import Corpus
from puna.data.shards import ShardSet
from puna.evaluate.report import Results, TaskResult, compare
from puna.evaluate.run import RESULTS, read_samples
from puna.evaluate.statistics import Estimate
from puna.lineage.artifact import ancestry
from puna.stages.page import charts, html
from puna.stages.page.html import Section
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.report import ALL, Counter
from puna.tokenizer.report import Sample as TokenizerSample
from puna.tokenizer.report import compare as compare_tokenizers

_METRIC = "exact_match"
_TOKENIZER_BYTES = 200_000  # of each source, for the tokenizer's figures


@dataclass(frozen=True)
class Model:
    """A model with what its runs recorded.

    Attributes:
        key: In the summary.
        label: On the page.
        run: Its training run.
        metrics: The records of that run.
        task: Its figures on the compared task.
        samples: Its answers on that task, by item id.
    """

    key: str
    label: str
    run: Path
    metrics: Sequence[Mapping[str, Any]]
    task: TaskResult
    samples: Mapping[str, Mapping[str, Any]]

    @property
    def score(self) -> Estimate:
        """Exact match over all items."""
        return self.task.metrics[_METRIC]

    @property
    def train_records(self) -> list[Mapping[str, Any]]:
        """Records of the training loop's log."""
        return [r for r in self.metrics if r.get("kind") == "train"]

    def summary(self) -> dict[str, float]:
        """What `summary.json` holds of it."""
        score = self.score
        return {"n": score.n, _METRIC: score.value, "low": score.low, "high": score.high}


def read_model(key: str, label: str, run: Path, scores: Path, *, task: str) -> Model:
    """Read a training run and its evaluation."""
    results = Results.from_json(files.read_json(scores / RESULTS))
    samples = {r["id"]: r for r in read_samples(scores) if r["task"] == task and "error" not in r}
    return Model(key, label, run, RunFolder(run).read_metrics(), results[task], samples)


def lead(models: Sequence[Model]) -> str:
    """The sentence under the title."""
    seconds = sum(m.train_records[-1]["seconds"] for m in models if m.train_records)
    tokens = sum(m.train_records[-1]["tokens"] for m in models if m.train_records)
    return (
        f"From raw text to an assistant in one command: {console.short_number(tokens)} training tokens in "
        f"{console.short_time(seconds)} of training here. Every figure below stands in a file of a run folder."
    )


def headline(models: Sequence[Model]) -> str:
    """The scores as tiles."""
    return html.tiles([(f"{m.score.value:.1%}", f"{m.label}: held-out exercises right") for m in models])


def scores(models: Sequence[Model], *, compared_with: str = "") -> Section:
    """Held-out scores, all together and by kind, with intervals, and each step compared item by item.

    Args:
        models: In the order in which they were made; each is compared with the one before it.
        compared_with: Key of a model that the last one is compared with too.
    """
    groups = sorted({name for m in models for name in m.task.groups})
    rows = [("all", [_dot(m.score) for m in models])]
    rows += [(name.replace("_", " "), [_dot(m.task.groups.get(name)) for m in models]) for name in groups]
    labels = [m.label for m in models]
    figures = [["all", models[0].score.n, *(_figure(m.score) for m in models)]]
    for name in groups:
        found = [m.task.groups.get(name) for m in models]
        figures.append([name, next(e.n for e in found if e), *(_figure(e) for e in found)])
    pairs = list(itertools.pairwise(models))
    pairs += [(first, models[-1]) for first in models if first.key == compared_with and first not in models[-2:]]
    steps = [_step(a, b) for a, b in pairs]
    body = (
        html.paragraph(
            f"{models[0].score.n} exercises that occur in no training text under any wording, answered greedily; right "
            "means that the checker accepts the answer. Bars are 95 % intervals."
        )
        + charts.interval_chart("Held-out exercises by kind", rows, series=labels)
        + "".join(html.paragraph(step) for step in steps)
        + html.details("The figures", html.table(["kind", "n", *labels], figures, numeric=[1]))
    )
    return Section("scores", "Held-out exercises", body)


def _dot(estimate: Estimate | None) -> charts.Dot | None:
    return None if estimate is None else charts.Dot(estimate.value, estimate.low, estimate.high)


def _figure(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _step(before: Model, after: Model) -> str:
    paired = compare(list(before.samples.values()), list(after.samples.values()), metric=_METRIC)
    points = f"{100 * paired.difference:+.1f} points [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
    return (
        f"{before.label} to {after.label}: {points} on the same {paired.n} items; {paired.only_b} became right, "
        f"{paired.only_a} became wrong (McNemar p = {paired.p_value:.2g})."
    )


def losses(models: Sequence[Model]) -> Section:
    """Loss curves of every training run."""
    body = ""
    for model in models:
        records = model.train_records
        if not records:
            continue
        raw = [(float(r["tokens"]), float(r["loss"])) for r in records]
        held = [(float(r["tokens"]), float(r["loss"])) for r in model.metrics if r.get("kind") == "evaluation"]
        lines = [charts.Line("training", raw, faint=True), charts.Line("training", charts.smooth(raw))]
        if held:
            lines.append(charts.Line("held-out documents", held))
        last = records[-1]
        body += f"<h3>{html.escape(model.label)}</h3>"
        body += charts.line_chart(f"Loss of {model.label}", lines, x_label="tokens", y_label="loss, nats")
        ends = f"last training loss {last['loss']:.3f}" + (f", held-out loss {held[-1][1]:.3f}" if held else "")
        body += html.paragraph(f"{last['steps']} steps, {console.short_number(last['tokens'])} tokens; {ends}.")
    return Section("loss", "Loss", body)


def answers(models: Sequence[Model], count: int) -> Section:
    """Questions with every model's answer: spread over the kinds, right and wrong ones as they come."""
    last = models[-1]
    ids = [i for i in last.samples if all(i in m.samples for m in models)]
    by_kind: dict[str, list[str]] = {}
    for item in sorted(ids):
        by_kind.setdefault(str(last.samples[item].get("group", "")), []).append(item)
    kinds = sorted(by_kind)
    picked = [by_kind[kind][0] for kind in kinds[:: max(1, len(kinds) // max(count, 1))]][:count]
    shown = [
        html.Sample(
            question=_question(last.samples[item]["prompt"]),
            reference=str(last.samples[item]["target"]),
            answers=[(m.label, _said(m.samples[item]), bool(m.samples[item]["scores"][_METRIC])) for m in models],
        )
        for item in picked
    ]
    note = html.paragraph("The first item of each kind, by its id: not chosen for its answers.")
    return Section("answers", "Answers", note + html.samples(shown))


def _question(prompt: Any) -> str:
    return str(prompt[-1]["content"]) if isinstance(prompt, list) else str(prompt).rpartition("Question:")[2].strip()


def _said(sample: Mapping[str, Any]) -> str:
    text = str(sample.get("extracted") or sample["answer"]).strip()
    return text if len(text) <= 160 else text[:157] + "..."


def funnel(corpus_path: Path, shards_path: Path) -> Section:
    """What was read, what was dropped and why, and the tokens that came of it."""
    corpus, shards = Corpus.open(corpus_path), ShardSet.open(shards_path, verify="sizes")
    rows, bars = [], []
    for name in corpus.sources:
        source = corpus.manifest["sources"][name]
        tokens = sum(
            s.n_tokens
            for split in ("train", "held_out")
            for n, s in shards.sources(split).items()
            if n.partition("/")[0] == name
        )
        reasons = {why: n["documents"] for step in source["steps"].values() for why, n in step["dropped"].items()}
        dropped = ", ".join(f"{why} {n}" for why, n in sorted(reasons.items(), key=lambda r: -r[1])) or "none"
        unread = sum(source["problems"].values())
        read, kept = source["read"], source["kept"]
        rows.append(
            [
                name,
                f"{read['documents']:,}",
                dropped,
                f"{unread:,}",
                f"{kept['documents']:,}",
                console.short_bytes(kept["bytes"]),
                console.short_number(tokens),
            ]
        )
        bars.append((name, float(tokens), f"{console.short_number(tokens)} tokens"))
    columns = ["source", "read", "dropped", "unreadable", "kept", "text", "tokens"]
    return Section(
        "data",
        "Data",
        charts.bar_chart("Tokens by source", bars, unit="tokens") + html.table(columns, rows, numeric=[1, 3, 4, 5, 6]),
    )


def tokenizer(path: Path, corpus_path: Path) -> Section:
    """Characters for one token, by source."""
    corpus = Corpus.open(corpus_path)
    own = Counter.of(Tokenizer.load(path), name="tokenizer")
    one_byte = Counter("bytes", 256, lambda text: len(text.encode()))
    samples = [
        TokenizerSample(text, name, corpus.domain(name))
        for name in corpus.sources
        for text in corpus.texts([name], bytes_per_source=_TOKENIZER_BYTES)
    ]
    rows = compare_tokenizers(own, [one_byte], samples)
    mine = [r for r in rows if r.tokenizer == own.name]
    table = [
        [
            "all" if r.language == ALL else r.language,
            f"{r.characters_per_token:.2f}",
            f"{r.bytes_per_token:.2f}",
            f"{r.tokens:,}",
        ]
        for r in mine
    ]
    text = (
        f"Byte-level BPE with Llama 3's split pattern: {own.vocab_size:,} ids, 256 of them special. Measured on the "
        f"first {console.short_bytes(_TOKENIZER_BYTES)} of each source."
    )
    columns = ["source", "characters a token", "bytes a token", "tokens"]
    return Section("tokenizer", "Tokenizer", html.paragraph(text) + html.table(columns, table, numeric=[1, 2, 3]))


def speed(models: Sequence[Model]) -> Section:
    """Throughput of each training run, and its distance to the machine's matrix-product rate."""
    rows = []
    for model in models:
        records = model.train_records
        if not records:
            continue
        rate = statistics.median(r["tokens_per_second"] for r in records)
        shares = [r["mfu"] for r in records if r["mfu"] is not None]
        ceiling = next((r["matmul_flops_per_second"] for r in records if r["matmul_flops_per_second"]), None)
        rows.append(
            [
                model.label,
                console.short_time(records[-1]["seconds"]),
                console.short_number(rate),
                f"{statistics.median(shares):.0%}" if shares else "-",
                f"{ceiling / 1e9:.0f} GFLOP/s" if ceiling else "-",
                f"{max(r['memory_bytes'] for r in records) / 2**30:.2f} GiB",
                f"{records[-1]['goodput']:.1%}",
            ]
        )
    text = "The ceiling is the rate of large matrix products, measured in the run; model FLOPs count causal attention."
    columns = ["run", "time", "tokens/s, median", "of the ceiling", "ceiling", "memory", "goodput"]
    return Section("speed", "Speed", html.paragraph(text) + html.table(columns, rows, numeric=[1, 2, 3, 4, 5, 6]))


def lineage(path: Path) -> Section:
    """Everything that the last model was made from."""
    rows = []
    for step in ancestry(path):
        if step.record is None:
            rows.append([step.path.name, "given", "", (step.fingerprint or "missing")[:12], ""])
            continue
        state = "changed since" if step.changed else step.record.status
        time = console.short_time(step.record.seconds)
        rows.append([step.path.name, step.record.command, time, (step.fingerprint or "missing")[:12], state])
    columns = ["artifact", "made by", "time", "fingerprint", "state"]
    return Section("lineage", "Lineage", html.table(columns, rows, numeric=[2]))


def talk(path: Path) -> Section:
    """How to go on from here."""
    return Section("chat", "Talk to it", html.preformatted(f"puna chat {path}\npuna serve {path}"))
