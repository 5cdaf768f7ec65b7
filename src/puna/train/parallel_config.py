"""How a run is dealt out over processes: the settings, what "the rest" means, why a layout cannot be. No torch here.

    world = dp_replicate x dp_shard x cp x tp x pp

Neighbouring ranks share a layer (tp), then a sequence (cp), then shards of the parameters (dp_shard), then copies
(dp_replicate), then stages (pp): what talks most is nearest. Llama 3 405B: tp 8 inside a node, cp, pp, and dp outermost
(2407.21783, section 3.3.2; there dp lies outside pp, here pp outside dp, so that a stage's gradients stay close).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import ConfigError
from puna.model.config import ModelConfig

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Outermost first: tp neighbours are neighbouring ranks."""

IMPOSSIBLE = "this layout cannot be used"

Schedule = Literal["1f1b", "gpipe", "interleaved", "zero-bubble", "zbv"]


class ParallelConfig(Config):
    """How processes share the work. The defaults are one process."""

    dp_replicate: int = Field(default=1, ge=-1)
    """Whole copies of the (sharded) model; gradients are summed over them. -1: what is left."""
    dp_shard: int = Field(default=1, ge=-1)
    """Processes that share parameters, gradients and optimizer state (FSDP). -1: what is left."""
    tp: int = Field(default=1, ge=-1)
    """Tensor and sequence parallel: processes that share each layer; keep them inside a node. -1: what is left."""
    pp: int = Field(default=1, ge=-1)
    """Pipeline stages' processes; each batch of train.accumulation is one micro-batch. -1: what is left."""
    cp: int = Field(default=1, ge=-1)
    """Context parallel: processes that share each sequence, for long contexts. -1: what is left."""
    schedule: Schedule = "1f1b"
    """Order of the pipeline's work: zero-bubble and zbv split the backward pass; zbv places stages in a V."""
    stages_per_rank: int = Field(default=0, ge=0)
    """Stages of each pipeline process; 0: 2 for interleaved, zero-bubble and zbv, else 1."""
    layers_per_stage: tuple[int, ...] = ()
    """Layers of each stage in order; empty: even, with one less where embedding and head are."""
    reshard_after_forward: Literal["auto", "always", "never"] = "auto"
    """Free gathered parameters between forward and backward: less memory, one more gather. auto: if there is no pp."""
    recompute: Literal["none", "selective", "full", "budget"] = "none"
    """Activations computed again in the backward: none; all but products and attention; all; as memory_budget says."""
    memory_budget: float = Field(default=0.5, ge=0.0, le=1.0)
    """For recompute=budget (needs compile): share of the activations that may be kept."""
    compile: bool = False
    """torch.compile for each block."""
    float8: Literal["none", "tensorwise", "rowwise"] = "none"
    """Matrix products in float8 through torchao, on GPUs that have it (H100 and later)."""
    async_tp: bool = False
    """Overlap the exchanges of tensor parallelism with its products (needs compile, tp > 1 and CUDA)."""
    offload: Literal["none", "optimizer"] = "none"
    """Keep sharded weights and optimizer state in the host's memory and step there: slow, for what does not fit."""

    @model_validator(mode="after")
    def _degrees_are_degrees(self) -> "ParallelConfig":
        bad = [axis for axis in AXES if getattr(self, axis) == 0]
        if bad:
            raise ValueError(f"{', '.join(bad)} is 0; a degree is 1 or more, or -1 for what is left")
        rest = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} are both -1; one of them may be what is left")
        return self

    @property
    def is_single(self) -> bool:
        """Whether one process is asked for."""
        return all(getattr(self, axis) == 1 for axis in AXES)

    def resolve(self, world_size: int) -> "ParallelConfig":
        """The config with every degree known.

        Args:
            world_size: Number of processes.

        Raises:
            ConfigError: The degrees do not multiply to it.
        """
        known = 1
        for axis in AXES:
            known *= max(1, getattr(self, axis))
        rest = [axis for axis in AXES if getattr(self, axis) == -1]
        product = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1) or "1"
        if rest and world_size % known == 0:
            return self.model_copy(update={rest[0]: world_size // known})
        if not rest and known == world_size:
            return self
        if rest:
            text = (
                f"{world_size} processes cannot be divided by {product} = {known} to leave a whole {rest[0]}. "
                f"{_divisors_hint(known, world_size)}"
            )
        elif world_size > known and world_size % known:
            text = (
                f"{product} = {known} processes are asked for, there are {world_size}, and {known} does not divide "
                f"them. {_divisors_hint(known, world_size)}"
            )
        else:
            asked = "no degree is set, so one process is" if self.is_single else f"{product} = {known} processes are"
            text = (
                f"{asked} asked for, there are {world_size}. Start {known} (torchrun --nproc-per-node, --nnodes), or "
                "set one degree to -1 to take what is left: parallel.dp_shard=-1 or parallel.dp_replicate=-1"
            )
        raise ConfigError([f"parallel: {text}"])

    @property
    def world_size(self) -> int:
        """Processes in all; every degree must be known."""
        total = 1
        for axis in AXES:
            total *= getattr(self, axis)
        return total

    @property
    def data_ranks(self) -> int:
        """Processes that read different rows."""
        return self.dp_replicate * self.dp_shard

    @property
    def shard_ranks(self) -> int:
        """Processes that share each parameter: dp_shard and cp together."""
        return self.dp_shard * self.cp

    @property
    def n_stages(self) -> int:
        """Pipeline stages in all."""
        looped = self.schedule in ("interleaved", "zero-bubble", "zbv")
        return self.pp * (self.stages_per_rank or (2 if looped and self.pp > 1 else 1))

    def stages_of(self, pp_rank: int) -> tuple[int, ...]:
        """Numbers of a process's stages: in a loop, or in a V for zbv."""
        if self.schedule == "zbv" and self.pp > 1:
            return pp_rank, self.n_stages - 1 - pp_rank
        return tuple(range(pp_rank, self.n_stages, self.pp))

    def stage_layers(self, n_layers: int) -> list[tuple[int, int]]:
        """First and one past the last layer of each stage.

        Without `layers_per_stage` they are even, and what is left over goes to the stages between the first and the
        last, which have embedding and head to do, and may have no layer at all (2407.21783, section 3.3.2: one less).
        """
        counts, n = list(self.layers_per_stage), self.n_stages
        if not counts:
            base, extra = divmod(n_layers, n)
            middle_first = [*range(1, n - 1), 0, n - 1]
            counts = [base + (i in middle_first[:extra]) for i in range(n)]
        edges, start = [], 0
        for count in counts:
            edges.append((start, start + count))
            start += count
        return edges


@dataclass(frozen=True)
class Work:
    """What a step has to be dealt out.

    Attributes:
        rows: Rows of a batch over all processes.
        sequence_length: Tokens of a row.
        accumulation: Batches of a step: the pipeline's micro-batches.
        device: Where; some choices need CUDA.
    """

    rows: int
    sequence_length: int
    accumulation: int
    device: str = "cpu"


def problems(config: ParallelConfig, model: ModelConfig, work: Work) -> list[str]:
    """Everything that is wrong with a resolved layout for a model and its work; empty when it can be.

    Args:
        config: Every degree known.
        model: The model's shape.
        work: Batches and device.
    """
    tensor = _tensor_problems(config, model)
    return [
        *tensor,
        *_token_problems(config, work, told=bool(tensor)),
        *_pipeline_problems(config, model, work),
        *_choice_problems(config, work),
    ]


def check(config: ParallelConfig, model: ModelConfig, work: Work) -> None:
    """Refuse a layout that cannot be, with every reason.

    Raises:
        ConfigError: See `problems`.
    """
    found = problems(config, model, work)
    if found:
        raise ConfigError(found, title=IMPOSSIBLE)


def degree_problems(config: ParallelConfig, model: ModelConfig) -> list[str]:
    """What is wrong with the degrees for a model, as far as they are known: before the number of processes is."""
    return _tensor_problems(config, model)


def _divisors_hint(asked: int, world_size: int) -> str:
    """The nearest products and numbers of processes that go together."""
    fitting = [n for n in range(1, world_size + 1) if world_size % n == 0]
    near = sorted(sorted(fitting, key=lambda n: abs(n - asked))[:2])
    starts = [n for n in (world_size // asked * asked, -(-world_size // asked) * asked) if n]
    return (
        f"Degrees whose product divides {world_size}: nearest {' and '.join(map(str, near))}; or start "
        f"{' or '.join(map(str, dict.fromkeys(starts)))} processes"
    )


def _divides(value: int, what: str, degree: int, axis: str, hint: str) -> Sequence[str]:
    if degree > 1 and value % degree:
        return [f"parallel.{axis}={degree} must divide {what} {value}. {hint}"]
    return []


def _tensor_problems(config: ParallelConfig, model: ModelConfig) -> list[str]:
    found, tp = [], config.tp
    shared = {"kv heads": model.n_kv_heads, "columns of the feed-forward": model.ffn_dim}
    if broken := [f"the {n} {what}" for what, n in shared.items() if tp > 1 and n % tp]:
        fitting = [n for n in range(1, model.n_kv_heads + 1) if not any(size % n for size in shared.values())]
        near = min(fitting, key=lambda n: (abs(n - tp), n))
        found.append(
            f"parallel.tp={tp} does not divide {' and '.join(broken)}, which are dealt out whole. The nearest that "
            f"does: {near}; all that do: {', '.join(map(str, fitting))}."
        )
    if config.shard_ranks > 1 and model.dim % config.shard_ranks:
        found.append(
            f"parallel.dp_shard x cp = {config.shard_ranks} must divide dim {model.dim}, which is what is sharded. "
            "Use a smaller dp_shard and dp_replicate for the rest."
        )
    return found


def _token_problems(config: ParallelConfig, work: Work, *, told: bool) -> list[str]:
    """`told`: the degree of tp is refused already, so how it cuts tokens does not matter."""
    found = list(
        _divides(
            work.rows,
            "data.rows",
            config.data_ranks,
            "dp_shard x dp_replicate",
            "Rows are dealt out; change data.rows.",
        )
    )
    if work.rows % config.data_ranks == 0 and not told:
        tokens = work.rows // config.data_ranks * work.sequence_length
        parts = config.cp * config.tp * (2 if config.cp > 1 else 1)
        if parts > 1 and tokens % parts:
            found.append(
                f"a process's batch of {tokens} tokens cannot be cut into {parts} equal parts "
                f"({'2 x ' if config.cp > 1 else ''}cp {config.cp} x tp {config.tp}). Change data.sequence_length."
            )
    return found


def _pipeline_problems(config: ParallelConfig, model: ModelConfig, work: Work) -> list[str]:
    if config.pp == 1:
        return ["parallel.layers_per_stage needs pp > 1"] if config.layers_per_stage else []
    found, n = [], config.n_stages
    if model.tie_embeddings:
        found.append(
            f"parallel.pp={config.pp} needs an untied head: a tied embedding would live on two stages. Set "
            "model.tie_embeddings=false, or use dp_shard and tp."
        )
    if config.schedule in ("1f1b", "gpipe") and n != config.pp:
        found.append(
            f"parallel.schedule={config.schedule} has one stage a process, stages_per_rank is "
            f"{config.stages_per_rank}. Use schedule=interleaved."
        )
    if config.schedule == "zbv" and n != 2 * config.pp:
        found.append(f"parallel.schedule=zbv has two stages a process; stages_per_rank is {config.stages_per_rank}")
    if config.layers_per_stage:
        if len(config.layers_per_stage) != n:
            found.append(f"parallel.layers_per_stage names {len(config.layers_per_stage)} stages, there are {n}")
        if sum(config.layers_per_stage) != model.n_layers:
            found.append(
                f"parallel.layers_per_stage adds up to {sum(config.layers_per_stage)} layers, the model has "
                f"{model.n_layers}"
            )
        if min(config.layers_per_stage[1:-1], default=1) < 1:
            found.append("parallel.layers_per_stage has a stage without a layer; only the first and the last may be so")
    elif model.n_layers + 2 < n:
        found.append(
            f"{model.n_layers} layers, embedding and head cannot fill {n} stages. Use a smaller pp or stages_per_rank."
        )
    rounds = max(1, work.accumulation // config.pp)
    if work.accumulation < config.pp and config.schedule != "interleaved":
        found.append(
            f"train.accumulation={work.accumulation} micro-batches do not fill parallel.pp={config.pp}. Set "
            f"train.accumulation={config.pp} or more (and data.rows lower, for the same batch); schedule=interleaved "
            "takes fewer, with idle processes."
        )
    elif config.schedule in ("interleaved", "zero-bubble") and work.accumulation % rounds:
        found.append(
            f"train.accumulation={work.accumulation} must be a multiple of parallel.pp={config.pp} for the schedule "
            f"{config.schedule}"
        )
    if config.schedule in ("zero-bubble", "zbv") and (config.recompute != "none" or config.compile):
        found.append(
            f"parallel.schedule={config.schedule} runs the backward in two halves, which recompute and compile do not "
            "allow. Set recompute=none and compile=false, or schedule=interleaved."
        )
    return found


def _choice_problems(config: ParallelConfig, work: Work) -> list[str]:
    found, cuda = [], work.device == "cuda"
    if config.recompute == "budget" and not config.compile:
        found.append("parallel.recompute=budget is done by the compiler: set parallel.compile=true")
    if config.async_tp and (config.tp == 1 or not config.compile or not cuda):
        found.append("parallel.async_tp needs tp > 1, compile=true and CUDA")
    if config.offload != "none" and config.is_single:
        found.append("parallel.offload is for several processes; one process has no shards to keep elsewhere")
    if config.float8 != "none" and not cuda:
        found.append(f"parallel.float8={config.float8} needs a CUDA device; this one is {work.device}")
    return found
