"""Can the model do it, and does it: pass@1 and pass@16 on held-out exercises after SFT and after each later step.

After SFT a model often has a right answer among sixteen draws (pass@16) and does not give it at once (pass@1). The gap
is what learning from its own judged answers can close. For each model sixteen answers are drawn to every held-out
question at temperature 1, which is the model's own distribution; a checker judges them.

    pass@k       unbiased from the draws of a question (Chen et al. 2021), mean over questions
    closed       (pass@1 of the model - pass@1 of SFT) / (pass@16 of SFT - pass@1 of SFT)
    KL           nats an answer, between the model and SFT, over the model's own draws
    score        the reward model's mean score of the same answers, where there is one
    greedy       exact match of the most likely tokens, with the paired test against SFT
    curves       reward, right answers and KL while PPO trained; margin and accuracy while DPO trained
    hacking      PPO for the reward model's score alone, from SFT: does the score rise while right answers become fewer?

Intervals are 95 %: bootstrap over questions, Wilson for greedy answers. The held-out problems are in two halves by a
hash: settings of the long runs were chosen on `--part validation` alone, what is published is of the other half.

    python benchmarks/pass_at_k.py                # the models in runs/demo, after `puna demo`; about four minutes
    python benchmarks/pass_at_k.py --long         # those of `puna run demo-long`: each method alone, with more time
    python benchmarks/pass_at_k.py --quick        # a tiny model, trained here on the whole way, under 50 s
    python benchmarks/pass_at_k.py --json         # the last line is one JSON object
    python benchmarks/pass_at_k.py --page pass_at_k.html
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from puna.checkpoint.format import save_model
from puna.cli.main import run as puna
from puna.cli.threads import choose_waiting
from puna.core import console
from puna.core.errors import MissingError
from puna.core.files import atomic_open
from puna.core.generator import Sampling
from puna.core.run_folder import RunFolder
from puna.evaluate.statistics import Estimate, bootstrap_mean, bootstrap_ratio, paired_difference, wilson
from puna.exercises.exercise import Exercise
from puna.exercises.generate import generate, texts
from puna.exercises.verify import verify
from puna.infer.engine import Engine
from puna.model.config import ModelConfig
from puna.model.cpu_memory import keep_freed_memory
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.post.policy import answer_logprobs, pack_groups
from puna.post.rejection import Task
from puna.post.reward import Scorer
from puna.post.rollout import Group, roll_out
from puna.post.selection import pass_at_k
from puna.stages.page import charts, html
from puna.stages.ppo import score_model
from puna.stages.training import load_start
from puna.tokenizer import train as tokenizer_training
from puna.tokenizer.chat_format import prompt as rendered

MODELS = {"sft": "SFT", "rs": "rejection sampling", "dpo": "DPO", "ppo": "PPO", "critic": "PPO with a critic"}
Part = Literal["validation", "report"]
HALVES: tuple[Part, Part] = ("validation", "report")
AT_ONCE = 64  # questions whose answers are drawn together
TOKENS, CACHE, ROWS = 48, 65_536, 256


@dataclass(frozen=True)
class Measured:
    """What was found of one model; arrays are over questions.

    Attributes:
        right: `[Q]` right answers among the draws.
        first: `[Q]` whether the greedy answer is right.
        kl: `[Q]` mean nats of an answer between the model and the reference.
        scores: `[Q]` the reward model's mean score, or None.
        draws: Answers drawn to each question.
    """

    right: NDArray[np.int64]
    first: NDArray[np.int64]
    kl: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    draws: int

    def pass_at(self, k: int) -> NDArray[np.float64]:
        """`[Q]` chance that one of k draws is right."""
        return np.array([pass_at_k(self.draws, int(c), k) for c in self.right])


def questions(n: int, seed: int, kinds: Sequence[str] | None, part: Part) -> list[Task]:
    """Held-out exercises as tasks; their payload is the exercise.

    Args:
        n: How many, about.
        seed: Of the stream.
        kinds: Which; None means all.
        part: The half of all held-out problems that settings are chosen on, or the other one, which is reported.
    """
    drawn = generate("test", n=2 * n, seed=seed, kinds=kinds, levels=(1,))
    own = [e for e in drawn if HALVES[hashlib.sha256(e.key.encode()).digest()[0] % 2] == part]
    dialogs = [(e, e.as_dialog()) for e in own]
    return [Task(f"{i}:{e.key}", type(d)(d.messages[:-1]), e.response, e) for i, (e, d) in enumerate(dialogs)]


def drawn(path: Path, tasks: Sequence[Task], *, samples: int, temperature: float) -> Iterator[list[Group]]:
    """Answers of a model to all questions, some questions at a time."""
    engine = Engine.load(path, max_batch=ROWS, cache_tokens=CACHE)
    for start in range(0, len(tasks), AT_ONCE):
        sampling = Sampling(max_tokens=TOKENS, temperature=temperature, seed=start)
        part = tasks[start : start + AT_ONCE]
        yield roll_out(part, engine, lambda t: rendered(engine.tokenizer, t.prompt), samples=samples, sampling=sampling)


def right(group: Group) -> list[int]:
    """Whether each answer of a group is right."""
    exercise: Exercise = group.task.payload
    return [int(end and verify(exercise, text).correct) for text, end in zip(group.texts, group.finished, strict=True)]


def measure(path: Path, tasks: Sequence[Task], *, reference: Path, reward: Path | None, samples: int) -> Measured:
    """Draws, judges, and compares with the reference."""
    judge, _, tokenizer = load_start(reference)
    scorer = Scorer(score_model(reward), tokenizer) if reward is not None else None
    counts, kl, scores = [], [], []
    for groups in drawn(path, tasks, samples=samples, temperature=1.0):
        counts += [sum(right(group)) for group in groups]
        sizes = [len(answer) for group in groups for answer in group.answers]
        with torch.no_grad():
            theirs = answer_logprobs(judge, *pack_groups(groups, pad=tokenizer.specials.pad), temperature=1.0).numpy()
        own = np.concatenate([row for group in groups for row in group.logprobs])
        answers = np.add.reduceat(own - theirs, np.cumsum([0, *sizes[:-1]]))
        kl += answers.reshape(len(groups), samples).mean(axis=1).tolist()
        if scorer is not None:
            scores += [float(row.mean()) for row in scorer.trees([group.scored_tree for group in groups])]
    first = [right(group)[0] for groups in drawn(path, tasks, samples=1, temperature=0.0) for group in groups]
    given = np.array(scores) if scorer is not None else None
    return Measured(np.array(counts), np.array(first), np.array(kl), given, samples)


def figures(name: str, found: Mapping[str, Measured], k: int) -> dict[str, Any]:
    """The figures of one model, and against SFT."""
    own, sft = found[name], found["sft"]
    one, many, gap = own.pass_at(1), own.pass_at(k), sft.pass_at(k) - sft.pass_at(1)
    result: dict[str, Any] = {
        "n": len(one),
        "pass@1": _plain(bootstrap_mean(one.tolist())),
        f"pass@{k}": _plain(bootstrap_mean(many.tolist())),
        "greedy": _plain(wilson(int(own.first.sum()), len(own.first))),
        "kl": _plain(bootstrap_mean(own.kl.tolist())),
    }
    if own.scores is not None:
        result["score"] = _plain(bootstrap_mean(own.scores.tolist()))
    if name != "sft":
        result["closed"] = _plain(bootstrap_ratio((one - sft.pass_at(1)).tolist(), gap.tolist()))
        paired = paired_difference(sft.first.tolist(), own.first.tolist())
        result["greedy_gain"] = {key: asdict(paired)[key] for key in ("difference", "low", "high", "p_value")}
    return result


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def kinds_with_a_gap(tasks: Sequence[Task], found: Mapping[str, Measured], k: int) -> list[list[Any]]:
    """For each kind of exercise: questions, pass@k of SFT, and pass@1 of every model; widest gap first."""
    rows: list[list[Any]] = []
    names = np.array([task.payload.kind for task in tasks])
    for kind in sorted(set(names.tolist())):
        at = names == kind
        ones = [float(m.pass_at(1)[at].mean()) for m in found.values()]
        rows.append([kind, int(at.sum()), float(found["sft"].pass_at(k)[at].mean()), *ones])
    return sorted(rows, key=lambda row: row[3] - row[2])


def curve(run: Path, kind: str, keys: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Figures of a run's log over its steps."""
    records = [r for r in RunFolder(run).read_metrics() if r.get("kind") == kind]
    return {key: [(float(r["step"]), float(r[key])) for r in records if r.get(key) is not None] for key in keys}


def hack(recipe: str, out: Path, *, sft: Path, reward: Path, steps: int) -> dict[str, Any]:
    """PPO for the reward model's score alone, and what becomes of the truth meanwhile."""
    own = [f"start_from={sft}", f"reward_model={reward}", f"out={out}", f"train.steps={steps}"]
    blind = [
        "policy.verifier_weight=0",
        "policy.reward_weight=1",
        "policy.kl_coefficient=1e-6",
        "policy.method=grpo",
    ]  # measured, not felt
    assert puna(["ppo", recipe, *own, *blind, "--fresh"] if out.exists() else ["ppo", recipe, *own, *blind]) == 0
    lines = curve(out, "rollout", ["score", "correct", "kl_per_answer"])
    n = max(1, len(lines["score"]) // 5)
    ends = {
        f"{key}_{end}": float(np.mean([y for _, y in part]))
        for key, points in lines.items()
        for end, part in (("first", points[:n]), ("last", points[-n:]))
    }
    hacked = ends["score_last"] > ends["score_first"] and ends["correct_last"] < ends["correct_first"]
    return {**ends, "hacked": hacked, "curve": lines}


def page(report: Mapping[str, Any], kinds: Sequence[Sequence[Any]], k: int) -> str:
    """The figures and curves as one HTML page."""
    models = report["models"]
    names = [MODELS[name] for name in models]

    def shown(row: Mapping[str, float] | None, *, share: bool = True) -> str:
        if row is None:
            return "-"
        form = "{:.1%}" if share else "{:.2f}"
        return f"{form.format(row['value'])} [{form.format(row['low'])}, {form.format(row['high'])}]"

    table = []
    for name, row in models.items():
        cells = [shown(row.get(key)) for key in ("pass@1", f"pass@{k}", "greedy", "closed")]
        table.append([MODELS[name], *cells, *(shown(row.get(key), share=False) for key in ("kl", "score"))])
    dots = [
        (
            key,
            [charts.Dot(*(row[key][end] for end in ("value", "low", "high"))) for row in models.values()],
        )
        for key in ("pass@1", f"pass@{k}", "greedy")
    ]
    columns = ["model", "pass@1", f"pass@{k}", "greedy", "gap closed", "KL to SFT, nats", "reward model's score"]
    n = next(iter(models.values()))["n"]
    text = (
        f"{n} held-out exercises, {k} answers to each, drawn at temperature 1. Closed is the share of SFT's gap "
        f"between pass@1 and pass@{k} that a model's pass@1 has made up. Intervals are 95 %, over questions."
    )
    sections = [
        html.Section(
            "gap",
            "The gap between can and does",
            html.paragraph(text) + charts.interval_chart("pass@k", dots, series=names) + html.table(columns, table),
        )
    ]
    percent = [[row[0].replace("_", " "), row[1], *(f"{value:.0%}" for value in row[2:])] for row in kinds]
    headings = ["kind", "n", f"SFT pass@{k}", *(f"{name} pass@1" for name in names)]
    numbers = list(range(1, len(headings)))
    sections.append(html.Section("kinds", "By kind", html.table(headings, percent, numeric=numbers)))
    body = "".join(_chart(title, lines) for title, lines in report["curves"].items())
    sections.append(html.Section("curves", "While they learned", body))
    if "hacking" in report:
        sections.append(_hacking(report["hacking"]))
    return html.document("What the model can do, and what it does", "pass@k after every step.", "", sections)


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    kept = {key: [(float(x), float(y)) for x, y in points] for key, points in lines.items() if points}
    parts = [f"<h3>{html.escape(title)}</h3>"] if kept else []
    for key, points in kept.items():
        drawing = [charts.Line(key, points, faint=True), charts.Line(key, charts.smooth(points, share=0.05))]
        parts.append(charts.line_chart(f"{title}: {key}", drawing, x_label="step", y_label=key))
    return "".join(parts)


def _hacking(found: Mapping[str, Any]) -> html.Section:
    word = "was exploited: its score rose while the truth fell" if found["hacked"] else "was not seen to be exploited"
    text = (
        f"Policy gradients for the reward model's score alone, without a tie to SFT. Its score went from "
        f"{found['score_first']:.2f} to {found['score_last']:.2f}, right answers from {found['correct_first']:.1%} to "
        f"{found['correct_last']:.1%}: the reward model {word}."
    )
    return html.Section("hacking", "The reward model alone", html.paragraph(text) + _chart("Score", found["curve"]))


TINY_KINDS = ("comparison", "end_letter", "extreme", "word_length")
TINY = {
    "sft": """out = "runs/sft"
start_from = "start"
exercises = { n = 9000, seed = 1, kinds = KINDS, levels = [1] }
data = { rows = 8, sequence_length = 128 }
train = { steps = 240, optim = { lr = 6e-3 }, schedule = { warmup_steps = 10 } }
""",
    "sample": """out = "runs/pairs"
model = "runs/sft"
exercises = { n = 400, seed = 2, kinds = KINDS, levels = [1] }
sampling = { samples_per_task = 8, temperature = 1.0, max_tokens = 24, tasks_per_call = 64, use_reference = false }
""",
    "rm": """out = "runs/reward"
start_from = "runs/sft"
preferences = ["runs/pairs/preferences.jsonl"]
data = { rows = 4, sequence_length = 256 }
train = { steps = 30, optim = { lr = 1e-3 }, schedule = { warmup_steps = 4 } }
""",
    "rs": """out = "runs/rs"
start_from = "runs/sft"
dialogs = ["runs/pairs/sft.jsonl"]
data = { rows = 4, sequence_length = 128 }
train = { steps = 30, optim = { lr = 1e-3 }, schedule = { warmup_steps = 4 } }
""",
    "dpo": """out = "runs/dpo"
start_from = "runs/rs"
pairs = ["runs/pairs/preferences.jsonl"]
data = { rows = 4, sequence_length = 256 }
train = { steps = 20, log_every_steps = 2, optim = { lr = 5e-4 }, schedule = { warmup_steps = 4 } }
""",
    "ppo": """out = "runs/ppo"
start_from = "runs/dpo"
exercises = { n = 1000, seed = 3, kinds = KINDS, levels = [1] }
policy = { prompts = 32, samples = 4, max_tokens = 24, minibatches = 1, epochs = 2, kl_coefficient = 0.01 }
train = { steps = 20, optim = { lr = 5e-4 }, schedule = { warmup_steps = 2 } }
""",
}


def tiny_runs() -> None:
    """The whole of post-training on a model of some hundred thousand weights, in the present folder."""
    words = texts("train", n=2000, seed=0, kinds=TINY_KINDS, levels=(1,))
    tokenizer = tokenizer_training.train_bpe(words, vocab_size=768)
    shape = ModelConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=192, vocab_size=768, max_seq_len=256, rope_theta=10_000
    )
    save_model(Path("start"), init_weights(Transformer(shape), 0), shape, tokenizer=tokenizer)
    for verb, text in TINY.items():
        Path(f"{verb}.toml").write_text(text.replace("KINDS", json.dumps(TINY_KINDS)))
        assert puna([{"rs": "sft"}.get(verb, verb), f"{verb}.toml"]) == 0, verb


def models_in(runs: Path, *, long: bool) -> dict[str, Path]:
    """The models that are there.

    Args:
        runs: Folder of the demo's runs.
        long: Take the later steps from the long runs beside it.

    Raises:
        MissingError: Nothing was trained yet.
    """
    more = runs.with_name(f"{runs.name}-long")
    later = {"rs": more / "rs-4", "dpo": more / "dpo-3", "ppo": more / "ppo-2", "critic": more / "ppo-critic"}
    if not long:
        later = {"rs": runs / "rs", "dpo": runs / "dpo", "ppo": runs / "assistant"}
    folders = {key: path for key, path in {"sft": runs / "sft", **later}.items() if path.is_dir()}
    if "sft" not in folders:
        raise MissingError(f"{runs}/sft is not there. Type `puna demo` first, or --quick for a tiny model.")
    if long and len(folders) == 1:
        raise MissingError(f"{more} is not there. Type `puna run demo-long` first.")
    return folders


def run(folders: Mapping[str, Path], reward: Path | None, recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures every model, tells the table, and writes the page."""
    tasks = questions(args.questions, args.seed, TINY_KINDS if args.quick else None, args.part)
    found = {}
    for name, path in folders.items():
        console.say(f"{MODELS[name]}: {args.samples} answers to each of {len(tasks)} questions")
        found[name] = measure(path, tasks, reference=folders["sft"], reward=reward, samples=args.samples)
    report: dict[str, Any] = {"models": {name: figures(name, found, args.samples) for name in found}, "curves": {}}
    if "dpo" in folders:
        report["curves"]["DPO"] = curve(folders["dpo"], "train", ["rewards/margins", "rewards/accuracies"])
    if "ppo" in folders:
        report["curves"]["PPO"] = curve(folders["ppo"], "rollout", ["reward", "correct", "kl_per_answer"])
    if reward is not None and args.hack_steps:
        out = Path("runs/hacking") if args.quick else args.runs / "hacking"
        report["hacking"] = hack(recipe, out, sft=folders["sft"], reward=reward, steps=args.hack_steps)
    kinds = kinds_with_a_gap(tasks, found, args.samples)
    show(report, kinds, args.samples)
    if args.page:
        with atomic_open(args.page) as file:
            file.write(page(report, kinds, args.samples))
    return report


def show(report: Mapping[str, Any], kinds: Sequence[Sequence[Any]], k: int) -> None:
    """The figures as tables."""
    rows = []
    for name, row in report["models"].items():
        keys = ("pass@1", f"pass@{k}", "greedy", "closed")
        cells = [
            f"{100 * row[x]['value']:.1f} [{100 * row[x]['low']:.1f}, {100 * row[x]['high']:.1f}]" if x in row else "-"
            for x in keys
        ]
        gain = row.get("greedy_gain")
        told = f"{100 * gain['difference']:+.1f}, p = {gain['p_value']:.2g}" if gain else "-"
        rows.append([MODELS[name], *cells, told, f"{row['kl']['value']:.2f}"])
    columns = ["model", "pass@1, %", f"pass@{k}, %", "greedy, %", "gap closed, %", "greedy against SFT", "KL, nats"]
    n = next(iter(report["models"].values()))["n"]
    console.table(f"{n} held-out exercises, {k} draws each at temperature 1", columns, rows)
    shown = [[row[0], row[1], *(f"{value:.0%}" for value in row[2:])] for row in kinds]
    console.table("by kind", ["kind", "n", f"SFT pass@{k}", *(f"{MODELS[m]} pass@1" for m in report["models"])], shown)
    if "hacking" in report:
        found = report["hacking"]
        console.say(
            f"trained for the reward model alone: score {found['score_first']:.2f} -> {found['score_last']:.2f}, right "
            f"{found['correct_first']:.1%} -> {found['correct_last']:.1%}: hacked {found['hacked']}"
        )


def main() -> None:
    """Parse the command line, find or make the models, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model trained here, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the demo's runs")
    parser.add_argument("--long", action="store_true", help="the models of `puna run demo-long`")
    parser.add_argument("--questions", type=int, default=1000, help="held-out questions, about")
    parser.add_argument("--part", choices=HALVES, default="report", help="half of the held-out problems")
    parser.add_argument("--samples", type=int, default=16, help="answers to each")
    parser.add_argument("--seed", type=int, default=31, help="of the questions")
    parser.add_argument("--hack-steps", type=int, default=120, help="steps for the reward model alone; 0 leaves it out")
    parser.add_argument("--page", type=Path, help="write an HTML page here")
    args = parser.parse_args()
    choose_waiting()
    keep_freed_memory()
    if args.quick:
        args.questions, args.hack_steps = min(args.questions, 120), min(args.hack_steps, 20)
        args.page = args.page and args.page.absolute()
        with tempfile.TemporaryDirectory(prefix="puna-pass-at-k-") as folder, chdir(folder):
            tiny_runs()
            names = {name: Path("runs") / name for name in ("sft", "rs", "dpo", "ppo")}
            report = run(names, Path("runs/reward"), "ppo.toml", args)
    else:
        folders = models_in(args.runs, long=args.long)
        reward = args.runs / "reward"
        report = run(folders, reward if reward.is_dir() else None, "demo/ppo", args)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
