"""A run that is stopped, killed and goes on with fewer processes is the run that nothing happened to.

4 processes (dp_shard 2 x tp 2) are told to stop, 2 (dp_shard 2) are killed between two checkpoints, 1 goes on to the end.
All read the real loader over shards of two sources with a changing mix, a growing batch and shorter sequences at first;
every process writes down which rows it was given.
"""

import dataclasses
import hashlib
import os
import signal
from collections import defaultdict

import numpy as np
import pytest
import torch

from puna.checkpoint.format import load_model
from puna.core.batch import IGNORE
from puna.core.errors import Stopped
from puna.core.run_folder import RunFolder
from puna.data.loader import PackedLoader
from puna.data.shards import ShardSet
from puna.train.loop import train
from puna.train.loss import next_token_loss
from puna.train.machine import choose_machine
from puna.train.parallel import Ranks
from puna.train.parallel_config import ParallelConfig
from puna.train.ramp import BatchPhase, resolve_ramp
from tests.data.shard_sets import make_set

from . import parity
from .conftest import VOCAB, tiny_config, tiny_model
from .ranks import run_ranks

ROWS, LENGTH, STEPS = 4, 32, 14
PHASES = (
    BatchPhase(until_tokens=4 * 128, batch_tokens=128, sequence_length=16),
    BatchPhase(until_tokens=12 * 128, batch_tokens=256),
)
RAMP = resolve_ramp(PHASES, rows=ROWS, sequence_length=LENGTH, accumulation=3)
CONFIG = tiny_config(
    steps=STEPS,
    save_every_steps=3,
    log_every_steps=1,
    optim={"lr": 1e-3},
    schedule={"kind": "cosine", "warmup_steps": 2, "by": "tokens"},
)
STOP, KILL = 5, 11
"""Steps: the first session is stopped in the one, the second dies in the other, two steps after a checkpoint."""


class Rows:
    """The loader's batches; each is written down with its step, and made small enough for a tiny vocabulary."""

    def __init__(self, folder, log, rank, world, before):
        sizes = {"from": {"code": 0.7, "prose": 0.3}, "later": [(20, {"code": 0.3, "prose": 0.7})]}
        self._loader = PackedLoader(
            [ShardSet.open(folder)], weights=sizes["from"], later=sizes["later"], cuts=RAMP.cuts(LENGTH), rows=ROWS,
            sequence_length=LENGTH, seed=5, window_rows=3, rank=rank, world=world,
        )  # fmt: skip
        self._log, self._before, self._read = log, before, 0

    def next_batch(self):
        step = next(s for s in range(STEPS) if RAMP.tokens_at(s + 1) > self._read)
        self._before(step + 1)
        self._read += ROWS * LENGTH
        batch = self._loader.next_batch()
        names = [hashlib.sha256(row.tobytes()).hexdigest()[:12] for row in batch.tokens]
        with self._log.open("a") as file:
            file.writelines(f"{step + 1} {name}\n" for name in names)
        targets = np.where(batch.targets == IGNORE, IGNORE, batch.targets % VOCAB)
        return dataclasses.replace(batch, tokens=batch.tokens % VOCAB, targets=targets)

    def state(self):
        return {"loader": self._loader.state(), "read": self._read}

    def restore(self, state):
        self._loader.restore(state["loader"])
        self._read = state["read"]


def _session(rank, layout, shards, out, log, event):
    """One process until its end; `event(step)` is called before each batch."""
    ranks = Ranks(layout, choose_machine("cpu"))
    model = ranks.build(tiny_model(**parity.SHAPE).config)
    ranks.init_weights(0)
    batches = Rows(shards, log / f"{rank}.txt", ranks.data_rank, layout.data_ranks, lambda step: event(rank, step))
    train(model, loss=next_token_loss, batches=batches, config=CONFIG, run=RunFolder(out), ranks=ranks, ramp=RAMP)


def _is_told_to_stop(rank, layout, shards, out, log):
    told = []

    def event(rank, step):
        if (rank, step) == (2, STOP) and not told:
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)  # one process is told, all of them stop

    with pytest.raises(Stopped, match=f"step {STOP}"):
        _session(rank, layout, shards, out, log, event)


def _dies(rank, layout, shards, out, log):
    def event(rank, step):
        if step == KILL + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    _session(rank, layout, shards, out, log, event)


def _alone(shards, out, log):
    log.mkdir()
    batches = Rows(shards, log / "0.txt", 0, 1, lambda step: None)
    train(
        tiny_model(**parity.SHAPE), loss=next_token_loss, batches=batches, config=CONFIG, run=RunFolder(out), ramp=RAMP
    )


def _read(log, processes):
    """Rows by step, in the order of the global batch: the shares of data ranks one after the other, micro-batch by micro-batch."""
    by_step = defaultdict(list)
    shares = [[line.split() for line in (log / f"{rank}.txt").read_text().splitlines()] for rank in processes]
    each = ROWS // len(processes)
    for start in range(0, max(map(len, shares)), each):
        for share in shares:
            for step, name in share[start : start + each]:
                by_step[int(step)].append(name)
    return dict(by_step)


def test_a_run_on_4_then_2_then_1_processes_is_the_undisturbed_run(tmp_path):
    shards, out = tmp_path / "shards", tmp_path / "run"
    rng = np.random.default_rng(0)
    sizes = {name: rng.integers(3, 90, 60).tolist() for name in ("code", "prose")}
    make_set(shards, sizes, documents_per_shard=20)
    logs = [tmp_path / name for name in ("four", "two", "one", "whole")]
    for log in logs[:2]:
        log.mkdir()
    _alone(shards, tmp_path / "whole-run", logs[3])
    run_ranks(4, _is_told_to_stop, ParallelConfig(dp_shard=2, tp=2), shards, out, logs[0], folder=tmp_path)
    run_ranks(2, _dies, ParallelConfig(dp_shard=2), shards, out, logs[1], folder=tmp_path, killed=True)
    _alone(shards, out, logs[2])

    # the rows of every rank: tensor-parallel neighbours read the same ones, data ranks share each batch in its order
    whole = _read(logs[3], [0])
    assert [len(whole[step]) for step in sorted(whole)] == [4] * 4 + [8] * 4 + [12] * 6
    four, two, one = _read(logs[0], [0, 2]), _read(logs[1], [0, 1]), _read(logs[2], [0])
    assert _read(logs[0], [1, 3]) == four
    assert (min(four), max(four)) == (1, STOP) and (min(two), max(two)) == (STOP + 1, KILL)
    assert (min(one), max(one)) == (10, STEPS)  # after the checkpoint of step 9; steps 10 and 11 are made again
    assert all(two[step] == one[step] for step in (10, 11))
    assert four | two | one == whole  # nothing dropped, nothing repeated, the same order

    records, expected = (
        [r for r in RunFolder(p).read_metrics() if r["kind"] == "train"] for p in (out, tmp_path / "whole-run")
    )
    assert [r["step"] for r in records] == [r["step"] for r in expected] == list(range(1, STEPS + 1))
    for record, undisturbed in zip(records, expected, strict=True):
        assert record["tokens"] == undisturbed["tokens"] and record["lr"] == undisturbed["lr"]
        assert record["loss"] == pytest.approx(undisturbed["loss"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(undisturbed["grad_norm"], rel=1e-5)
    # as whole tensors; AdamW turns rounding of gradients near zero into steps of some 1e-3 of the rate in single numbers
    ours, theirs = (load_model(p)[0].state_dict() for p in (out, tmp_path / "whole-run"))
    for name, weight in theirs.items():
        apart = float(torch.linalg.vector_norm(ours[name] - weight) / torch.linalg.vector_norm(weight))
        assert apart < 1e-5, (name, apart)
