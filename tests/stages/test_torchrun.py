"""The command that a user types on several processes ends with the model that one process makes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from puna.checkpoint.format import load_model, load_tokenizer
from puna.cli import main
from puna.core import files
from puna.core.run_folder import RunFolder
from puna.train import blocks
from tests.tiny import write_tiny_pipeline

RAMP = "ramp=[{until_tokens=2560, batch_tokens=256, sequence_length=32}, {batch_tokens=512}]"
RUN = [
    "train",
    "recipes/pretrain.toml",
    "train.steps=16",
    "train.save_every_steps=8",
    "model.tie_embeddings=false",
    RAMP,
]


def start(folder, *words, processes=1, seconds=200):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "puna.cli.main", *RUN, *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tiny_pipeline(folder)
        for verb in (["curate", "recipes/curate.toml"], ["tokenize", "train", "recipes/tokenizer.toml"],
                     ["tokenize", "pack", "recipes/shards.toml"]):  # fmt: skip
            assert main.run(verb) == 0
    start(folder, "out=runs/one")
    return folder


PIPELINE = ["parallel.pp=2", "parallel.schedule=interleaved"]


@pytest.mark.parametrize(
    "layout", [["parallel.dp_shard=2"], pytest.param(PIPELINE, marks=pytest.mark.slow)], ids=["dp", "pp"]
)
def test_torchrun_ends_with_the_model_of_one_process(folder, layout):
    out = f"runs/{layout[0].partition('=')[0][-2:]}"
    start(folder, f"out={out}", *layout, processes=2)
    ours, theirs = folder / out / "model", folder / "runs/one/model"
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    files.verify(ours)
    assert load_tokenizer(ours).vocab_size == load_tokenizer(theirs).vocab_size
    weights = [load_model(path)[0].state_dict() for path in (ours, theirs)]
    for name, expected in weights[1].items():
        apart = torch.linalg.vector_norm(weights[0][name] - expected) / torch.linalg.vector_norm(expected)
        assert apart < 1e-5, (name, float(apart))
    told = [RunFolder(folder / p).read_metrics() for p in (out, "runs/one")]
    for record, expected in zip(*told, strict=True):
        assert (record["step"], record["tokens"]) == (expected["step"], expected["tokens"])
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert told[0][-2]["tokens"] == 10 * 256 + 6 * 512
    lineage = json.loads((folder / out / "lineage.json").read_text())
    assert lineage["status"] == "finished"


def test_one_process_recomputes_when_it_is_asked_to(folder, monkeypatch):
    """The same model; the blocks run through the checkpoint function."""
    monkeypatch.chdir(folder)
    used, real = [], blocks.checkpoint

    def counted(*args, **options):
        used.append(1)
        return real(*args, **options)

    monkeypatch.setattr(blocks, "checkpoint", counted)
    assert main.run([*RUN, "out=runs/again", "train.threads=1", "parallel.recompute=full"]) == 0
    assert used
    weights = [load_model(folder / path)[0].state_dict() for path in ("runs/again", "runs/one")]
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[0][name], expected, rtol=1e-5, atol=1e-6)
