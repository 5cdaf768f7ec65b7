"""Memory levers of fine-tuning, one a row, against plain full SFT: peak memory, trained parameters, tokens a second.

Each row is a process of its own, which makes the model's file into a training run as `puna sft` does and takes some
steps. Peak memory is the largest resident set of that process less what it had after its imports, so it counts weights,
gradients, optimizer and activations, and nothing of Python. Rates are the median of the steps after the first two (an
optimizer that is compiled compiles in the first).

The models are deep and narrow and a step has many tokens, so that activations outweigh weights, as they do in large
models with long contexts: only there can recomputing or offloading them show a gain.

    python benchmarks/memory_levers.py            # 11 M parameters, 4,096 tokens a step; minutes on two cores
    python benchmarks/memory_levers.py --quick    # 6 M parameters, 2,048 tokens, under 50 s
    python benchmarks/memory_levers.py --markdown # the table as the documentation has it
    python benchmarks/memory_levers.py --json     # the last line is one JSON object
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

WIDTHS = {"dim": 256, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 704, "vocab_size": 4_096}
SHAPES = {"full": WIDTHS | {"n_layers": 12}, "quick": WIDTHS | {"n_layers": 6}}
ROWS = {"full": (8, 512, 5), "quick": (4, 512, 4)}  # rows, tokens of a row, steps
WARM = 2


@dataclass(frozen=True)
class Lever:
    """One row.

    Attributes:
        key: In the JSON.
        name: In the table.
        train: Settings of the loop that differ.
        adapter: Settings of the adapter, or None.
        quick: Whether the quick run has it.
        needs: A package that it needs.
    """

    key: str
    name: str
    train: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    quick: bool = True
    needs: str = ""


_IN_BACKWARD = {"optim": {"step": "in_backward", "clip_norm": 0.0}}
LEVERS = [
    Lever("full", "full SFT"),
    Lever("recompute", "activations = recompute", {"activations": "recompute"}),
    Lever("offload", "activations = offload", {"activations": "offload"}, quick=False),
    Lever("in_backward", "optim.step = in_backward", _IN_BACKWARD),
    Lever("adamw8bit", "optim.kind = adamw8bit", {"optim": {"kind": "adamw8bit"}}, quick=False, needs="torchao"),
    Lever("lora", "LoRA, rank 16", adapter={}),
    Lever("dora", "DoRA, rank 16", adapter={"kind": "dora"}, quick=False),
    Lever("qlora", "QLoRA, rank 16", adapter={"kind": "qlora"}),
    Lever("qlora_recompute", "QLoRA + recompute", {"activations": "recompute"}, {"kind": "qlora"}),
]


def child(key: str, size: str, folder: Path) -> None:
    """Train a row's steps and print its figures as JSON."""
    import torch

    from puna.checkpoint.format import load_config
    from puna.core.run_folder import RunFolder
    from puna.model.adapter import trained_parameters
    from puna.model.adapter_config import AdapterConfig
    from puna.stages.training import adapted_model, first_model
    from puna.train import loop
    from puna.train.config import TrainConfig
    from puna.train.loss import next_token_loss

    lever = next(lever for lever in LEVERS if lever.key == key)
    n_rows, length, steps = ROWS[size]
    settings = {"steps": steps, "log_every_steps": steps, "save_every_seconds": 0.0, "schedule": {"warmup_steps": 0}}
    config = TrainConfig.model_validate({**settings, **lever.train})
    torch.ones(64, 64) @ torch.ones(64, 64)  # the library's own buffers
    loop.keep_freed_memory = lambda: None  # a heap that keeps what is freed would count its holes
    baseline, peaks, times = _peak(), list[int](), list[float]()
    if lever.adapter is None:
        model = first_model(load_config(folder), folder, seed=0)
    else:
        model = adapted_model(folder, AdapterConfig(**lever.adapter), config)

    class Run(RunFolder):
        """Notes the peak before the end's checkpoint is written."""

        def metrics(self, record: Any) -> None:
            peaks.append(_peak())
            super().metrics(record)

    def loss(model: Any, batch: Any) -> Any:
        times.append(time.perf_counter())
        return next_token_loss(model, batch)

    with tempfile.TemporaryDirectory() as run:
        loop.train(model, loss=loss, batches=RandomRows(n_rows, length), config=config, run=Run(run))
    seconds = [after - before for before, after in pairwise(times[WARM:])]
    figures = {
        "peak_gib": (peaks[0] - baseline) / 2**30,
        "trained": trained_parameters(model),
        "tokens_per_second": n_rows * length / statistics.median(seconds),
    }
    print(json.dumps(figures))


class RandomRows:
    """The same rows of one document each, again and again."""

    def __init__(self, n_rows: int, length: int) -> None:
        self._shape = n_rows, length

    def next_batch(self) -> Any:
        """One batch, every token a target."""
        import numpy as np

        from puna.core.batch import PackedBatch

        n_rows, length = self._shape
        tokens = np.random.default_rng(0).integers(0, WIDTHS["vocab_size"], self._shape)
        return PackedBatch(
            tokens=tokens,
            targets=np.roll(tokens, -1, 1),
            positions=np.broadcast_to(np.arange(length, dtype=np.int32), self._shape),
            lengths=np.full(n_rows, length),
            n_targets=tokens.size,
            sources={},
        )

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Any) -> None:
        """Nothing."""


def _peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(size: str, folder: Path) -> None:
    """The model that all rows begin with, in a process of its own too."""
    from puna.checkpoint.format import save_model
    from puna.model.config import ModelConfig
    from puna.model.init import init_weights
    from puna.model.transformer import Transformer

    shape = ModelConfig(**SHAPES[size], max_seq_len=1024)
    save_model(folder, init_weights(Transformer(shape), 0), shape)


def run_child(*arguments: str) -> str:
    """Run this file again and return its output's last line."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = "quick" if given.quick else "full"
    if given.make:
        make_model(size, Path(given.make))
        return
    if given.child:
        child(given.child[0], size, Path(given.child[1]))
        return
    quick = ["--quick"] if given.quick else []
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        run_child("--make", model, *quick)
        for lever in LEVERS:
            if (given.quick and not lever.quick) or (lever.needs and find_spec(lever.needs) is None):
                continue
            row = json.loads(run_child("--child", lever.key, model, *quick))
            base = found.get("full", row)
            found[lever.key] = {
                "name": lever.name,
                **row,
                "memory_share": row["peak_gib"] / base["peak_gib"],
                "rate_share": row["tokens_per_second"] / base["tokens_per_second"],
            }
            if not given.markdown:
                print(_line(found[lever.key]), flush=True)
    if given.markdown:
        print("| lever | peak memory, GiB | of full SFT | trained parameters | tokens/s | of full SFT |")
        print("|---|---|---|---|---|---|")
        for row in found.values():
            print(
                f"| {row['name']} | {row['peak_gib']:.3f} | {row['memory_share']:.2f} | {row['trained']:,} | "
                f"{row['tokens_per_second']:,.0f} | {row['rate_share']:.2f} |"
            )
    if given.json:
        print(json.dumps(found))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:28} {row['peak_gib']:7.3f} GiB ({row['memory_share']:4.2f}x) {row['trained']:>12,} trained "
        f"{row['tokens_per_second']:8,.0f} tokens/s ({row['rate_share']:4.2f}x)"
    )


if __name__ == "__main__":
    main()
