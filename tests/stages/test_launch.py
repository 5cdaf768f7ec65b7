"""Launch files hold against the tools' own checks: bash -n, sbatch's options, the Kubernetes schema."""

import re
import shlex
import stat
import subprocess
from dataclasses import replace

import pytest
import yaml

from puna.cli import main
from puna.core.errors import UsageError
from puna.stages.launch import Job, files, job_name, to_yaml, world_size, write

JOB = Job("llama3-70b", ("puna", "train", "my recipe.toml", "train.steps=5"), gpus=64, partition="big", account="lab")
# long options of sbatch (Slurm 24.05, its manual page)
OPTIONS = """
account array batch bb begin chdir clusters comment constraint container contiguous core-spec cores-per-socket
cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude exclusive export
extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres hint
hold ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind
mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core
ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output overcommit oversubscribe parsable partition
power prefer priority profile propagate qos quiet reboot requeue reservation segment signal sockets-per-node
spread-job stepmgr switches test-only thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid
use-min-nodes verbose wait wait-all-nodes wckey wrap
"""
SBATCH = set(OPTIONS.split())


def shell_accepts(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


def test_the_slurm_script_is_a_script_with_options_that_sbatch_knows():
    text = files(JOB, "slurm")["job.sbatch"]
    assert shell_accepts(text)
    lines = text.splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert {option.partition("=")[0] for option in options} <= SBATCH
    assert {"nodes=8", "ntasks-per-node=8", "gpus-per-node=8", "partition=big", "account=lab"} <= set(options)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (75, 40, True), (1, 0, True), (1, 20, False), (137, 3, True)],
)
def test_the_slurm_script_requeues_what_can_resume(tmp_path, code, restarts, requeued):
    """Run with toys in the place of srun and scontrol; only failures count, not planned stops."""
    (tmp_path / "llama3-70b-77.failures").write_text("1\n" * restarts)
    for name, body in {
        "srun": f'printf "%s\\n" "$@" > {tmp_path}/words; exit {code}',
        "scontrol": f'if [ "$1" = requeue ]; then touch {tmp_path}/requeued; else echo node-1; fi',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[1-8]", "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": "99", "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", files(JOB, "slurm")["job.sbatch"]], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert (tmp_path / "requeued").exists() is requeued
    assert requeued or done.returncode == code
    assert (tmp_path / "words").read_text().splitlines()[-3:] == ["train", "my recipe.toml", "train.steps=5"]


def test_srun_gives_every_process_the_variables_of_torch(tmp_path):
    text = files(JOB, "slurm")["job.sbatch"]
    inner = shlex.split(next(line for line in text.splitlines() if line.startswith("srun")))[4]
    environment = {"PATH": "/usr/bin:/bin", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "64"}
    shown = subprocess.run(
        ["bash", "-c", inner.partition("exec")[0] + "echo $RANK $LOCAL_RANK $WORLD_SIZE"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["9", "1", "64"]


def test_the_kubernetes_file_holds_against_the_schema():
    validate = pytest.importorskip("kubernetes_validate")
    text = files(replace(JOB, rdma="rdma/ib"), "kubernetes")["job.yaml"]
    assert "many times slower" not in text
    assert "many times slower" in files(JOB, "kubernetes")["job.yaml"]
    service, job = yaml.safe_load_all(text)
    for document in (service, job):
        validate.validate(document, "1.31", strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 8
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == JOB.name
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "rdma/ib": 8}
    assert container["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]
    assert container["command"][2].index("--dry-run &&") < container["command"][2].index("torch.distributed.run")
    assert shell_accepts(container["command"][2])
    assert f"--master-addr={JOB.name}-0.{JOB.name}" in container["command"][2]
    assert shlex.split(container["command"][2])[-3:] == ["train", "my recipe.toml", "train.steps=5"]


def test_the_torchrun_script_starts_one_node():
    text = files(Job("x", JOB.words, gpus=8), "torchrun")["run.sh"]
    assert shell_accepts(text)
    assert "--nproc-per-node 8" in text
    with pytest.raises(UsageError, match="--slurm or --kubernetes"):
        files(JOB, "torchrun")


def test_a_run_that_does_not_fit_is_not_launched(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["launch", "llama3-8b", "--torchrun", "--gpus", "8"]) == 2
    message = capfd.readouterr().err
    assert "GiB a GPU, a H100 has" in message
    smaller = re.search(r"data.rows=\d+ train.accumulation=\d+", message)
    assert smaller is not None
    assert not list(tmp_path.iterdir())
    assert main.run(["launch", "llama3-8b", "--torchrun", "--gpus", "8", *smaller.group().split()]) == 0
    assert main.run(["launch", "llama3-8b", "--torchrun", "--gpus", "8", "--no-check", "--out", "anyway"]) == 0


def test_a_name_that_a_script_would_run_is_refused():
    with pytest.raises(UsageError, match="--partition is"):
        files(replace(JOB, partition="a\nb"), "slurm")


def test_gpus_must_fill_nodes():
    with pytest.raises(UsageError, match="a multiple of 8"):
        files(Job("x", JOB.words, gpus=12 + 1), "slurm")


def test_two_places_are_no_place(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["launch", "llama3-8b", "--torchrun", "--slurm", "--gpus", "8"]) == 2
    assert "--torchrun and --slurm are different places" in capfd.readouterr().err
    assert main.run(["launch", "llama3-8b", "--gpus", "8"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_content_is_not_written_over(tmp_path):
    made = write(Job("x", JOB.words, gpus=8), "torchrun", tmp_path / "new")
    assert made[0].stat().st_mode & stat.S_IXUSR
    assert write(Job("x", JOB.words, gpus=8), "torchrun", tmp_path / "new") == made
    with pytest.raises(UsageError, match="not written over"):
        write(Job("x", JOB.words, gpus=4), "torchrun", tmp_path / "new")


@pytest.mark.parametrize("text", ["Llama 3 (8B)", "a" * 80, "___", "x-" * 40])
def test_names_are_labels(text):
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", job_name(text))


@pytest.mark.parametrize(
    "value", [{"a": [], "b": {}}, {"x": [{"y": [1, "2", None, True]}, ["no", "~", ": #"]]}, {"t": "a\nb"}]
)
def test_yaml_reads_back_as_what_was_written(value):
    assert yaml.safe_load(to_yaml(value)) == value


class Parallel:
    def __init__(self, **degrees):
        self.__dict__.update(degrees)


class Recipe:
    def __init__(self, **degrees):
        self.parallel = Parallel(**degrees)


def test_the_world_is_the_product_of_the_degrees_or_what_is_asked_for():
    assert world_size(Recipe(tp=8, pp=2), None) == 16
    assert world_size(Recipe(tp=8, dp_shard=-1), 64) == 64
    assert world_size(object(), None) == 1
    for recipe, gpus in ((Recipe(tp=8, dp_shard=-1), None), (Recipe(tp=8, dp_shard=-1), 12), (Recipe(tp=8), 16)):
        with pytest.raises(UsageError, match="--gpus"):
            world_size(recipe, gpus)


def test_the_verb_checks_the_recipe_and_says_how_to_start(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["launch", "demo/pretrain", "--slurm"]) == 0
    assert "sbatch launch/pretrain/job.sbatch" in capfd.readouterr().out
    assert main.run(["launch", "demo/pretrain"]) == 2
    assert "--torchrun" in capfd.readouterr().err
    assert main.run(["launch", "demo/tokenizer", "--slurm"]) == 2
    assert "one process" in capfd.readouterr().err
    assert main.run(["launch", "demo/pretrain", "train.stepz=3", "--slurm"]) == 2
    assert "Did you mean" in capfd.readouterr().err
