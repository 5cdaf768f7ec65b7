"""What `puna launch` writes: the files that start a recipe on a node, under Slurm, or on Kubernetes.

All of them start one process a GPU with the variables that torch.distributed reads (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), and start again what stopped: the same command resumes from its last checkpoint.

- `torchrun`: one node; torchrun restarts the group. It turns every exit code into 1, so a dry run before it finds
  what no restart mends: a recipe error (2), missing data (3).
- `slurm`: srun starts the processes itself, so that exit codes arrive: 75 (stopped, resumable) requeues the job;
  Slurm's signal before the time limit makes the run save and end so. 2 and 3 end it. Failures are counted in a file,
  since Slurm's own count holds every requeue.
- `kubernetes`: an indexed Job with one pod a node, and a headless Service under which pod 0 is found. The dry run comes
  first here too, and its exit codes fail the Job at once.

Sources: sbatch and srun manual pages (Slurm 24.05); Kubernetes Job reference (batch/v1), `completionMode: Indexed`.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from puna.core.errors import UsageError
from puna.core.files import atomic_open

Target = Literal["torchrun", "slurm", "kubernetes"]
PORT = 29_500
GRACE_SECONDS = 300
"""From the signal to end until what is left is killed: time to save."""


@dataclass(frozen=True)
class Job:
    """What is started.

    Attributes:
        name: Of the job: lower-case letters, digits and dashes, at most 52 characters.
        words: The command: `("puna", "train", "my.toml")`.
        gpus: Processes in all.
        gpus_per_node: GPUs of a node.
        hours: Time limit (Slurm).
        partition: Slurm's, or empty.
        account: Slurm's, or empty.
        image: Container image (Kubernetes).
        claim: PersistentVolumeClaim that holds recipe, data and runs (Kubernetes).
        restarts: How often a failed run is started again.
        python: Interpreter that has puna.
        rdma: Resource of the network cards (Kubernetes), or empty.
    """

    name: str
    words: Sequence[str]
    gpus: int
    gpus_per_node: int = 8
    hours: float = 24.0
    partition: str = ""
    account: str = ""
    image: str = "puna:latest"
    claim: str = "puna-data"
    restarts: int = 20
    python: str = "python"
    rdma: str = ""

    @property
    def nodes(self) -> int:
        """Nodes that are needed."""
        return math.ceil(self.gpus / self.gpus_per_node)

    @property
    def processes_per_node(self) -> int:
        """Processes of each node."""
        return self.gpus // self.nodes

    def check(self, target: Target) -> None:
        """Refuse what cannot be started so.

        Raises:
            UsageError: With the next command.
        """
        for name in ("partition", "account", "image", "claim", "python", "rdma"):
            if not re.fullmatch(r"[\w.,@:/+~-]*", value := getattr(self, name)):
                raise UsageError(f"--{name} is {value!r}; letters, digits and . , @ : / + ~ - _ are allowed")
        if self.gpus < 1 or self.gpus_per_node < 1:
            raise UsageError(f"--gpus {self.gpus} with --gpus-per-node {self.gpus_per_node}: both must be 1 or more")
        if self.gpus % self.nodes:
            raise UsageError(
                f"{self.gpus} GPUs do not fill {self.nodes} nodes of {self.gpus_per_node} evenly; give --gpus "
                f"as a multiple "
                f"of {self.gpus_per_node}, or another --gpus-per-node"
            )
        if target == "torchrun" and self.nodes > 1:
            raise UsageError(
                f"torchrun's file is for one node; {self.gpus} GPUs are {self.nodes} nodes of "
                f"{self.gpus_per_node}. Use "
                "--slurm or --kubernetes, or --gpus-per-node if the node is larger."
            )


def job_name(text: str) -> str:
    """A name that Slurm and Kubernetes take (RFC 1123 label, short enough for a pod's suffix)."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].strip("-") or "puna"


def world_size(config: Any, gpus: int | None) -> int:
    """Processes of a recipe.

    Args:
        config: The checked recipe; its `parallel` table, if there is one, says the degrees.
        gpus: What the user asks for, or None.

    Raises:
        UsageError: It cannot be told, or the two do not agree.
    """
    parallel = getattr(config, "parallel", None)
    degrees = [getattr(parallel, name, 1) for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp")]
    fixed = math.prod(d for d in degrees if d > 0)
    if gpus is None:
        if -1 in degrees:
            raise UsageError("a degree of the recipe is -1 (what is left); say how many GPUs with --gpus")
        return fixed
    if (-1 in degrees and gpus % fixed) or (-1 not in degrees and gpus != fixed):
        raise UsageError(
            f"the recipe's degrees multiply to {fixed}{' times what is left' if -1 in degrees else ''}, --gpus "
            f"is {gpus}. "
            "Change one of them, for example parallel.dp_shard=-1"
        )
    return gpus


def files(job: Job, target: Target) -> dict[str, str]:
    """The files of a target, by name.

    Raises:
        UsageError: The job cannot be started so.
    """
    job.check(target)
    if target == "torchrun":
        return {"run.sh": _torchrun(job)}
    if target == "slurm":
        return {"job.sbatch": _slurm(job)}
    return {"job.yaml": _kubernetes(job)}


def write(job: Job, target: Target, folder: Path) -> list[Path]:
    """Write the files of a target; one with other content is never written over.

    Returns:
        Their paths.

    Raises:
        UsageError: A file is there with other content.
    """
    made = {folder / name: text for name, text in files(job, target).items()}
    for path, text in made.items():
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageError(f"{path} is there with other content and was not written over; use --out OTHER")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in made.items():
        with atomic_open(path) as file:
            file.write(text)
        if path.suffix == ".sh":
            path.chmod(0o755)
    return list(made)


def how_to_start(target: Target, path: Path) -> str:
    """The command that starts what was written."""
    return {"torchrun": "bash", "slurm": "sbatch", "kubernetes": "kubectl apply -f"}[target] + f" {path}"


def _module(words: Sequence[str]) -> str:
    """The command without its first word, as arguments of `python -m puna.cli.main`."""
    return shlex.join(["puna.cli.main", *words[1:]])


_ENVIRONMENT = {
    "OMP_NUM_THREADS": "8",
    "NCCL_DEBUG": "WARN",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def _exports() -> str:
    return "\n".join(f"export {key}={value}" for key, value in _ENVIRONMENT.items())


def _check(job: Job) -> str:
    """The dry run that comes before torchrun."""
    return f"{job.python} -m {_module(job.words)} --dry-run"


def _elastic(job: Job) -> str:
    """Torchrun of the environment that has puna."""
    return f"{job.python} -m torch.distributed.run --shutdown-timeout {GRACE_SECONDS}"


def _torchrun(job: Job) -> str:
    return f"""#!/usr/bin/env bash
# {shlex.join(job.words)} on one node with {job.gpus} GPUs.
set -euo pipefail
{_exports()}
{_check(job)}
exec {_elastic(job)} --standalone --nproc-per-node {job.gpus} --max-restarts {job.restarts} -m {_module(job.words)}
"""


def _slurm(job: Job) -> str:
    hours, minutes = divmod(round(job.hours * 60), 60)
    optional = [
        f"#SBATCH --{key}={value}" for key, value in (("partition", job.partition), ("account", job.account)) if value
    ]
    head = "\n".join(
        [
            f"#SBATCH --job-name={job.name}",
            f"#SBATCH --nodes={job.nodes}",
            f"#SBATCH --ntasks-per-node={job.processes_per_node}",
            f"#SBATCH --gpus-per-node={job.processes_per_node}",
            "#SBATCH --cpus-per-task=8",
            "#SBATCH --mem=0",
            "#SBATCH --exclusive",
            f"#SBATCH --time={hours:02d}:{minutes:02d}:00",
            f"#SBATCH --signal=TERM@{GRACE_SECONDS}",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            f"#SBATCH --output={job.name}-%j.log",
            *optional,
        ]
    )
    inner = (
        "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec " + job.python + ' -m "$@"'
    )
    return f"""#!/usr/bin/env bash
{head}
# {shlex.join(job.words)} on {job.gpus} GPUs of {job.nodes} nodes. Stopped runs are requeued and resume.
set -uo pipefail
{_exports()}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=$(({PORT} + SLURM_JOB_ID % 1000))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from the job by itself

srun --kill-on-bad-exit=1 bash -c '{inner}' puna {_module(job.words)}
code=$?

failures={job.name}-$SLURM_JOB_ID.failures
# 0: done. 2 and 3: the recipe or its data must be mended first. 75: saved, resumable. Else: a failure.
case $code in
  0|2|3|4) exit $code ;;
  75) ;;
  *) echo $code >> "$failures"
     if [ "$(wc -l < "$failures")" -gt {job.restarts} ]; then exit $code; fi ;;
esac
scontrol requeue "$SLURM_JOB_ID"
"""


def _kubernetes(job: Job) -> str:
    labels = {"app.kubernetes.io/name": "puna", "app.kubernetes.io/instance": job.name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": job.name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    documents = [service, {"apiVersion": "batch/v1", "kind": "Job"} | _indexed_job(job, labels)]
    note = f"# {shlex.join(job.words)} on {job.gpus} GPUs of {job.nodes} nodes. Failed pods start again and resume.\n"
    if job.nodes > 1 and not job.rdma:
        note += "# No network cards are asked for (--rdma RESOURCE): NCCL goes over the pods' TCP, many times slower.\n"
    note += "# The pods' memory must hold the copies of checkpoints on their way to storage.\n"
    return note + "---\n".join(to_yaml(document) for document in documents)


def _indexed_job(job: Job, labels: Mapping[str, str]) -> dict[str, Any]:
    script = (
        f"{_check(job)} && exec {_elastic(job)} --nnodes={job.nodes} --nproc-per-node={job.processes_per_node} "
        f"--node-rank=$JOB_COMPLETION_INDEX --master-addr={job.name}-0.{job.name} --master-port={PORT} "
        f"-m {_module(job.words)}"
    )
    limits = {"nvidia.com/gpu": job.processes_per_node}
    container = {
        "name": "train",
        "image": job.image,
        "workingDir": "/data",
        "command": ["bash", "-c", script],
        "env": [{"name": key, "value": value} for key, value in _ENVIRONMENT.items()],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": limits, "requests": {"cpu": 8 * job.processes_per_node}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if job.rdma:
        limits[job.rdma] = job.processes_per_node
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    pod = {
        "subdomain": job.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS + 30,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        ],
    }
    return {
        "metadata": {"name": job.name, "labels": dict(labels)},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": job.restarts * job.nodes,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2, 3]}}
                ]
            },
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }


def to_yaml(value: Any, indent: int = 0) -> str:
    """YAML of plain mappings, lists and scalars; text is quoted as JSON does, which YAML reads the same."""
    pad, lines = "  " * indent, []
    items = value.items() if isinstance(value, Mapping) else ((None, entry) for entry in value)
    for key, entry in items:
        head = f"{pad}{key}:" if key is not None else f"{pad}-"
        if isinstance(entry, (Mapping, list)) and entry:
            body = to_yaml(entry, indent + 1)
            # a list entry begins on the line of its dash
            lines.append(f"{head}\n{body}" if key is not None else f"{head} {body.lstrip()}")
        else:
            lines.append(f"{head} {_scalar(entry)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9./-]*", value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "none", "y", "n"}
