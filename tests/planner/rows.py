"""A few rows in the form of published throughputs, and workloads, for the tests of the planner."""

import os
from pathlib import Path

import pytest

from puna.model.config import SIZES
from puna.planner.hardware import read_cluster
from puna.planner.layout import Degrees, Workload
from puna.planner.shape import from_config

HEADER = (
    "source,model,n_gpus,gpu,tp,pp,vpp,cp,dp_shard,dp_replicate,seq_len,global_batch_seqs,micro_batch,precision,act_ckpt,"
    "tflops_per_gpu,tok_s_gpu,mfu,peak_mem_gib,note"
)
GOOD = "a lab,llama2-7b,8,H100-80GB,1,1,,1,8,1,4096,64,2,bf16,full,,9000,,,FSDP"


def published_file():
    """The file of published throughputs, or a skip that says so."""
    root = Path(os.environ.get("PUNA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "planner" / "throughput_published.csv"
    if not path.exists():
        pytest.skip(f"published throughputs are not at {path}; set PUNA_TEST_DATA to the folder that holds planner/")
    return path


def write_csv(folder, *lines, header=HEADER):
    """A CSV in a folder."""
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def work(size="8B", cluster="8xH100", degrees=None, **changes):
    """A workload of one of our sizes."""
    machine = read_cluster(cluster)
    given = {"seq_len": 8192, "global_batch": 64, "micro_batch": 1} | changes
    return Workload(from_config(SIZES[size]), machine, degrees or Degrees(dp_shard=machine.n_gpus), **given)
