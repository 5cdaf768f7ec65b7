"""The loop: learns, resumes bit by bit after any end, and stops before harm is done."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.checkpoint.format import load_model
from puna.core import files
from puna.core.batch import IGNORE
from puna.core.errors import PunaError, Stopped, UsageError
from puna.core.run_folder import RunFolder
from puna.train.loop import train
from puna.train.loss import LossOutput, next_token_loss
from puna.train.pretrain import first_batches, held_out

from .conftest import VOCAB, CountingBatches, same_weights, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
KEPT = ("kind", "step", "tokens", "loss", "lr", "grad_norm")


def _train(path, *, config=None, model=None, batches=None, loss=next_token_loss, **rest):
    model = model or tiny_model()
    run = RunFolder(path)
    result = train(
        model, loss=loss, batches=batches or CountingBatches(), config=config or tiny_config(), run=run, **rest
    )
    return model, run, result


def _story(run):
    """What `metrics.jsonl` says, without times."""
    return [{key: record[key] for key in KEPT if key in record} for record in run.read_metrics()]


def test_a_tiny_model_learns_to_count(tmp_path):
    evaluate = held_out(first_batches(CountingBatches(rows=8), 1))
    before = evaluate(tiny_model())["loss"]
    config = tiny_config(steps=60, optim={"lr": 1e-2}, evaluate_every_steps=20)
    model, run, result = _train(tmp_path, config=config, evaluate=evaluate)
    assert result.evaluation["loss"] < 0.75 * before and before == pytest.approx(4.11, abs=0.1)
    assert result.steps == 60 and result.tokens == 60 * 96
    assert [r["step"] for r in run.read_metrics() if r["kind"] == "evaluation"] == [20, 40, 60]
    assert result.best["loss"] == min(r["loss"] for r in run.read_metrics() if r["kind"] == "evaluation")
    loaded, _ = load_model(tmp_path)
    assert same_weights(loaded, model)
    assert files.verify(run.model) == result.fingerprint


@pytest.mark.parametrize(("rows", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_accumulation_gives_the_run_of_the_whole_batch(rows, accumulation, tmp_path):
    whole, run, _ = _train(tmp_path / "whole", batches=CountingBatches(rows=8))
    cut, cut_run, _ = _train(
        tmp_path / "cut", config=tiny_config(accumulation=accumulation), batches=CountingBatches(rows=rows)
    )
    for a, b in zip(run.read_metrics(), cut_run.read_metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )
        assert a["tokens"] == b["tokens"]
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from puna.core.run_folder import RunFolder
from puna.train.loop import train
from puna.train.loss import next_token_loss
from tests.train.conftest import CountingBatches, tiny_config, tiny_model
torch.set_num_threads(1)

class Deadly(CountingBatches):
    def next_batch(self):
        if self.row == {row} and {number}:
            os.kill(os.getpid(), {number})
        return super().next_batch()

config = tiny_config(**{config!r})
train(tiny_model(), loss=next_token_loss, batches=Deadly(), config=config, run=RunFolder({path!r}))
"""


def _run_and_kill(path, config, *, step, number):
    """Train in a process of its own that gets a signal while it makes a step."""
    program = textwrap.dedent(PROGRAM).format(row=4 * (step - 1), number=int(number), config=config, path=str(path))
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )


def test_two_hundred_steps_equal_a_hundred_a_kill_and_a_hundred(tmp_path):
    config = {"steps": 200, "save_every_steps": 50, "log_every_steps": 7}
    whole, run, _ = _train(tmp_path / "whole", config=tiny_config(**config))
    killed = _run_and_kill(tmp_path / "killed", config, step=117, number=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "model").exists()
    assert RunFolder(tmp_path / "killed").read_metrics()[-1]["step"] == 112  # beyond the last save, at step 100
    again, again_run, result = _train(tmp_path / "killed", config=tiny_config(**config), model=tiny_model(seed=99))
    assert same_weights(whole, again)
    assert _story(run) == _story(again_run)
    assert result.fingerprint == files.fingerprint(run.model)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_and_the_run_goes_on_bit_by_bit(number, tmp_path):
    config = tiny_config(steps=20)
    whole, run, _ = _train(tmp_path / "whole", config=config)

    class Interrupted(CountingBatches):
        def next_batch(self):
            if self.row == 4 * 8:
                os.kill(os.getpid(), number)
            return super().next_batch()

    with pytest.raises(Stopped, match="step-00000009 is saved") as stop:
        _train(tmp_path / "stopped", config=config, batches=Interrupted())
    assert stop.value.exit_code == 75
    again, again_run, _ = _train(tmp_path / "stopped", config=config, model=tiny_model(seed=99))
    assert same_weights(whole, again) and _story(run) == _story(again_run)


def test_training_outside_the_main_thread_works(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(_train(tmp_path, config=tiny_config(steps=3))))
    thread.start()
    thread.join()
    assert results[0][2].steps == 3


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(tmp_path):
    config = tiny_config(steps=20, save_every_steps=5)
    whole, _, _ = _train(tmp_path / "whole", config=config)
    _, run, _ = _train(tmp_path / "cut", config=tiny_config(steps=20, save_every_steps=5, keep_last=4))
    weights = run.checkpoints / "step-00000020" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    again, run, _ = _train(tmp_path / "cut", config=config, model=tiny_model(seed=99))
    assert same_weights(whole, again)
    assert [r["step"] for r in run.read_metrics()] == [5, 10, 15, 20]


def test_a_finished_run_called_again_changes_nothing(tmp_path):
    evaluate = held_out(first_batches(CountingBatches(), 1))
    _, run, first = _train(tmp_path, evaluate=evaluate)
    story = _story(run)
    _, run, second = _train(tmp_path, evaluate=evaluate, model=tiny_model(seed=99))
    assert (first.fingerprint, first.best, story) == (second.fingerprint, second.best, _story(run))


def test_a_finished_run_can_be_made_longer_but_not_shorter(tmp_path):
    schedule = {"kind": "constant", "warmup_steps": 2}
    whole, _, _ = _train(tmp_path / "whole", config=tiny_config(steps=18, schedule=schedule))
    _train(tmp_path / "grown", config=tiny_config(steps=11, schedule=schedule))
    grown, _, _ = _train(tmp_path / "grown", config=tiny_config(steps=18, schedule=schedule))
    assert same_weights(whole, grown)
    with pytest.raises(UsageError, match=r"has 18 steps, the recipe asks for 10\. Set train\.steps=18"):
        _train(tmp_path / "grown", config=tiny_config(steps=10))


def _poisoned(bad_row, value):
    def loss(model, batch):
        output = next_token_loss(model, batch)
        seen.append(batch)
        poison = value if len(seen) == bad_row else 0.0
        return LossOutput(sum=output.sum + poison * model.norm.weight.sum(), count=output.count, tokens=output.tokens)

    seen = []
    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_state_before_it_saved(value, tmp_path):
    with pytest.raises(PunaError, match=r"step 8: the loss is (nan|inf).*step-00000007 holds the state before"):
        _train(tmp_path / "bad", loss=_poisoned(8, value))
    whole, run, _ = _train(tmp_path / "whole")
    again, again_run, _ = _train(tmp_path / "bad", model=tiny_model(seed=99))  # the batch itself was good
    assert same_weights(whole, again) and _story(run) == _story(again_run)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_the_run_too(tmp_path):
    def loss(model, batch):
        output = next_token_loss(model, batch)
        return LossOutput(
            sum=output.sum + (model.norm.weight[0] * 0.0).sqrt(), count=output.count, tokens=output.tokens
        )

    with pytest.raises(PunaError, match=r"step 1: the loss is \d.*gradient norm (nan|inf)"):
        _train(tmp_path, loss=loss)


def test_batches_without_targets_are_refused(tmp_path):
    def loss(model, batch):
        output = next_token_loss(model, batch)
        return LossOutput(sum=output.sum * 0, count=0, tokens=output.tokens)

    with pytest.raises(PunaError, match="step 1: none of its batches has a target"):
        _train(tmp_path, loss=loss)


def test_a_recipe_of_another_shape_is_refused_before_anything_is_changed(tmp_path):
    _, run, _ = _train(tmp_path)
    before = files.fingerprint(run.model)
    with pytest.raises(PunaError, match=r"has 2 layers, the recipe asks for 3\. Set model\.n_layers=2"):
        _train(tmp_path, model=tiny_model(n_layers=3))
    assert files.fingerprint(run.model) == before


def test_a_disk_that_is_too_small_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    batches = CountingBatches()
    with pytest.raises(PunaError, match="the disk has 1 MiB free"):
        _train(tmp_path, batches=batches)
    assert batches.row == 0


def test_a_disk_that_fills_up_during_the_run_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    config, free = tiny_config(steps=20, save_every_steps=5), [1 << 40]
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]})())

    class Filling(CountingBatches):
        def next_batch(self):
            if self.row == 4 * 7:
                free[0] = 1 << 20
            return super().next_batch()

    with pytest.raises(PunaError, match="the disk has 1 MiB free"):
        _train(tmp_path / "run", config=config, batches=Filling())
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.is_dir()] == ["step-00000005"]
    free[0] = 1 << 40
    again, _, _ = _train(tmp_path / "run", config=config, model=tiny_model(seed=99))
    assert same_weights(again, _train(tmp_path / "whole", config=config)[0])


def test_checkpoints_hold_no_time_so_equal_runs_give_equal_seals(tmp_path):
    seals = []
    for name in ("a", "b"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, run, _ = _train(tmp_path / name)
        seals.append(json.loads((run.checkpoints / "step-00000012" / files.SEAL).read_text()))
    assert seals[0] == seals[1]


def test_any_loss_and_any_batches_will_do(tmp_path):
    """What DPO needs: pairs, a count of pairs, figures of its own, and parameters of another model untouched."""
    reference = tiny_model(seed=7)
    frozen = {name: tensor.clone() for name, tensor in reference.state_dict().items()}

    class Pairs(CountingBatches):
        def next_batch(self):
            chosen = super().next_batch()
            wrong = np.where(chosen.targets == IGNORE, IGNORE, (chosen.targets + 7) % VOCAB)
            return chosen, replace(chosen, targets=wrong)

    def loss(model, pair):
        chosen, rejected = (next_token_loss(model, half).sum for half in pair)
        with torch.no_grad():
            anchor = next_token_loss(reference, pair[0]).sum - next_token_loss(reference, pair[1]).sum
        margin = 0.1 * (rejected - chosen + anchor)
        total = -torch.nn.functional.logsigmoid(margin)
        return LossOutput(sum=total, count=1, tokens=192, metrics={"margin": margin, "accuracy": float(margin > 0)})

    _, run, _ = _train(tmp_path, loss=loss, batches=Pairs(), config=tiny_config(steps=20, accumulation=2))
    records = run.read_metrics()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in reference.state_dict().items())
    assert records[-1]["margin"] > records[0]["margin"] and 0 <= records[-1]["accuracy"] <= 1
    assert records[-1]["mfu"] is None


def test_narrow_weights_train_on_fp32_masters_and_resume_bit_by_bit(tmp_path):
    config = tiny_config(steps=10, precision="bf16", save_every_steps=5, accumulation=2)
    whole, run, _ = _train(tmp_path / "whole", config=config)
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}

    class Interrupted(CountingBatches):
        def next_batch(self):
            if self.row == 8 * 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().next_batch()

    with pytest.raises(Stopped):
        _train(tmp_path / "stopped", config=config, batches=Interrupted())
    again, again_run, _ = _train(tmp_path / "stopped", config=config, model=tiny_model(seed=99))
    assert same_weights(whole, again) and _story(run) == _story(again_run)
    wide, _, _ = _train(tmp_path / "wide", config=tiny_config(steps=10, accumulation=2))
    assert RunFolder(tmp_path / "wide").read_metrics()[-1]["loss"] == pytest.approx(
        run.read_metrics()[-1]["loss"], rel=0.02
    )
    assert not same_weights(wide, whole)
