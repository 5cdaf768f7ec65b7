"""Every layout makes the run of one process: loss, norm and each gradient; and a run changes its layout as it goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from puna.core.errors import ConfigError
from puna.core.run_folder import RunFolder
from puna.train.loop import train
from puna.train.loss import next_token_loss
from puna.train.machine import choose_machine
from puna.train.parallel import Ranks
from puna.train.parallel_config import ParallelConfig

from . import parity
from .conftest import tiny_config, tiny_model
from .parity import Part
from .ranks import run_ranks
from .whole import whole_tensors

LIMIT = 1e-5
GROUPS = {
    2: [
        {"dp_shard": 2},
        {"dp_replicate": 2},
        {"tp": 2},
        {"cp": 2},
        {"pp": 2},
        {"pp": 2, "schedule": "gpipe"},
        {"pp": 2, "schedule": "interleaved"},
        {"pp": 2, "schedule": "zero-bubble"},
        {"pp": 2, "schedule": "zbv"},
        {"pp": 2, "layers_per_stage": (1, 3)},
        {"dp_shard": 2, "recompute": "full"},
        {"tp": 2, "recompute": "selective"},
        {"dp_shard": 2, "offload": "optimizer"},
    ],
    4: [{"dp_replicate": 2, "dp_shard": 2}, {"dp_shard": 2, "cp": 2}, {"dp_shard": 2, "pp": 2, "schedule": "zbv"}],
    8: [{"dp_shard": 2, "tp": 2, "pp": 2}, {"dp_shard": 2, "cp": 2, "tp": 2}],
}


@pytest.mark.parametrize("world", GROUPS)
def test_loss_and_every_gradient_equal_those_of_one_process(world, tmp_path):
    reference = parity.alone()
    layouts = [ParallelConfig(**changes) for changes in GROUPS[world]]
    stories = run_ranks(world, parity.one_of, layouts, folder=tmp_path)[0]
    for changes, story in zip(GROUPS[world], stories, strict=True):
        apart = parity.furthest(story, reference)
        assert apart.pop("counts") == 0, changes
        assert max(apart.values()) < LIMIT, (changes, apart)


class Told(Part):
    """Batches that write down which rows this process was given."""

    def __init__(self, path, rank, world):
        super().__init__(rank, world)
        self._path = path

    def next_batch(self):
        first, last = self.row + self._share[0], self.row + self._share[1]
        with self._path.open("a") as file:
            file.writelines(f"{row}\n" for row in range(first, last))
        return super().next_batch()


def _some_steps(rank, layout, folder, steps, log):
    """Train to a step and stop there, as the launcher of a smaller machine would."""
    ranks = Ranks(layout, choose_machine("cpu"))
    model = ranks.build(tiny_model(**parity.SHAPE).config)
    ranks.init_weights(0)
    owns_rows = ranks.rank_on("tp") == ranks.rank_on("pp") == ranks.rank_on("cp") == 0
    batches = Told(log if owns_rows else Path(os.devnull), ranks.data_rank, layout.data_ranks)
    config = tiny_config(steps=steps, schedule={"kind": "constant", "warmup_steps": 2}, log_every_steps=1)
    train(model, loss=next_token_loss, batches=batches, config=config, run=RunFolder(folder), ranks=ranks)


def _alone(folder, steps, log):
    config = tiny_config(steps=steps, schedule={"kind": "constant", "warmup_steps": 2}, log_every_steps=1)
    model = tiny_model(**parity.SHAPE)
    train(model, loss=next_token_loss, batches=Told(log, 0, 1), config=config, run=RunFolder(folder))
    return model


def test_a_run_goes_on_with_fewer_processes_and_no_row_is_lost_or_read_twice(tmp_path):
    whole = _alone(tmp_path / "whole", 12, tmp_path / "whole.txt")
    folder, log = tmp_path / "run", tmp_path / "rows.txt"
    run_ranks(4, _some_steps, ParallelConfig(dp_shard=2, tp=2), folder, 4, log, folder=tmp_path)
    run_ranks(2, _some_steps, ParallelConfig(dp_shard=2), folder, 8, log, folder=tmp_path)
    last = _alone(folder, 12, log)
    records, expected = (RunFolder(p).read_metrics() for p in (folder, tmp_path / "whole"))
    assert [r["step"] for r in records] == [r["step"] for r in expected] == list(range(1, 13))
    for record, undisturbed in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(undisturbed["loss"], rel=1e-5)
        assert record["tokens"] == undisturbed["tokens"]
    for ours, theirs in zip(last.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    read = [int(row) for row in log.read_text().split()]
    assert sorted(read) == [int(row) for row in (tmp_path / "whole.txt").read_text().split()]  # each row once
    per_step = [sorted(read[i : i + 4]) for i in range(0, len(read), 4)]
    assert per_step == [list(range(i, i + 4)) for i in range(0, 48, 4)]  # and in the same step


def _stop_in_the_middle(rank, layout, folder, log):
    from puna.core.errors import Stopped

    class Interrupted(Told):
        def next_batch(self):
            if rank == 1 and self.row == 4 * 5:
                os.kill(os.getpid(), signal.SIGTERM)  # one process is told, all of them stop
            return super().next_batch()

    ranks = Ranks(layout, choose_machine("cpu"))
    model = ranks.build(tiny_model(**parity.SHAPE).config)
    ranks.init_weights(0)
    batches = Interrupted(Path(os.devnull), ranks.data_rank, layout.data_ranks)
    with pytest.raises(Stopped, match="step 6"):
        train(model, loss=next_token_loss, batches=batches, config=tiny_config(), run=RunFolder(folder), ranks=ranks)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_is_saved(tmp_path):
    run_ranks(2, _stop_in_the_middle, ParallelConfig(dp_shard=2), tmp_path / "run", None, folder=tmp_path)
    assert (tmp_path / "run/checkpoints/step-00000006").is_dir()


def _weights(rank, layout):
    ranks = Ranks(layout, choose_machine("cpu"))
    ranks.build(tiny_model(**parity.SHAPE).config)
    ranks.init_weights(3)
    return {name: weight.numpy() for name, weight in whole_tensors(ranks, ranks.weights.named).items()}


def test_first_weights_do_not_depend_on_the_layout(tmp_path):
    found = run_ranks(4, _weights, ParallelConfig(tp=2, pp=2), folder=tmp_path)[0]
    for name, parameter in tiny_model(seed=3, **parity.SHAPE).named_parameters():
        assert (parameter.detach().numpy() == found[name]).all(), name


def test_torchrun_is_not_needed_to_be_told_what_is_missing():
    with pytest.raises(ConfigError, match="dp_shard 2 = 2 processes are asked for, there are 1"):
        ParallelConfig(dp_shard=2).resolve(1)


def test_the_settings_need_no_torch():
    code = "import sys, puna.train.parallel_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
