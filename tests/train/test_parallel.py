"""Every layout makes the run of one process: loss, norm and each gradient."""

import os
import signal
import subprocess
import sys

import pytest

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
        {"pp": 2, "schedule": "interleaved", "stages_per_rank": 3},  # embedding and head on stages of their own
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


def _stop_in_the_middle(rank, layout, folder):
    from puna.core.errors import Stopped

    class Interrupted(Part):
        def next_batch(self):
            if rank == 1 and self.row == 4 * 5:
                os.kill(os.getpid(), signal.SIGTERM)  # one process is told, all of them stop
            return super().next_batch()

    ranks = Ranks(layout, choose_machine("cpu"))
    model = ranks.build(tiny_model(**parity.SHAPE).config)
    ranks.init_weights(0)
    batches = Interrupted(ranks.data_rank, layout.data_ranks)
    with pytest.raises(Stopped, match="step 6"):
        train(model, loss=next_token_loss, batches=batches, config=tiny_config(), run=RunFolder(folder), ranks=ranks)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_is_saved(tmp_path):
    run_ranks(2, _stop_in_the_middle, ParallelConfig(dp_shard=2), tmp_path / "run", folder=tmp_path)
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
