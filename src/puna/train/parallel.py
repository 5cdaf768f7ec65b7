"""This process among those of a run: its place in the mesh, its part of the model, its share of a step.

    dp_replicate x dp_shard   different rows of the batch; FSDP2 gathers parameters and sums gradients
    cp                        different tokens of the same rows; data to FSDP, so gradients are summed over it
    tp                        the same tokens, parts of each layer
    pp                        the same tokens, some of the layers

The loop asks for the same four things whether there is one process or many: `backward`, `reduce`, `weights`, `score`.
Gradients are those of a *sum* over the targets of all processes, and are divided by the global count once. Those of
norms, which tensor-parallel processes hold whole but apply to different tokens, are summed over that group afterwards.
The global norm counts every number once: shards over their groups, whole copies on one process only.

Source: FSDP2, 2304.11277; order of the axes, 2407.21783, section 3.3.2.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from puna.checkpoint.logical import logical, segments_of
from puna.checkpoint.starting import fill_from_model
from puna.core.errors import UsageError
from puna.model.config import ModelConfig
from puna.model.init import first_part
from puna.model.split import Split
from puna.model.transformer import Transformer
from puna.train.blocks import prepare_blocks
from puna.train.exchange import add_up, exchange
from puna.train.loss import Loss, LossOutput
from puna.train.machine import Machine
from puna.train.parallel_config import AXES, ParallelConfig, Work, check
from puna.train.pipeline import Pipeline
from puna.train.sharding import ShardedWeights, placements
from puna.train.solo import Batches, Figures


class Ranks:
    """One process of a run on several.

    Args:
        config: The layout, every degree known.
        machine: This process's device and the precision.
    """

    def __init__(self, config: ParallelConfig, machine: Machine) -> None:
        self.config, self.machine = config, machine
        shape = (config.pp, config.dp_replicate, config.dp_shard, config.cp, config.tp)
        kind = "cpu" if machine.device.type == "meta" else machine.device.type
        self._axes = init_device_mesh(kind, shape, mesh_dim_names=AXES)
        shape = (config.pp, config.dp_replicate, config.shard_ranks, config.tp)
        self._mesh = init_device_mesh(kind, shape, mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp"))
        self.models: list[Transformer] = []
        self.pipeline: Pipeline | None = None

    def rank_on(self, axis: str) -> int:
        """This process's number on an axis."""
        return self._axes.get_local_rank(axis)

    @property
    def data_rank(self) -> int:
        """Which share of a batch's rows this process reads, of `config.data_ranks`."""
        return self.rank_on("dp_replicate") * self.config.dp_shard + self.rank_on("dp_shard")

    @property
    def fsdp_group(self) -> dist.ProcessGroup:
        """Processes that share each parameter's part."""
        return self._mesh.get_group("fsdp")

    @property
    def pp_group(self) -> dist.ProcessGroup:
        """Processes of this pipeline."""
        return self._axes.get_group("pp")

    def group_names(self) -> dict[str, tuple[str, int]]:
        """Axis and size of every process group by its name."""
        meshes = ((self._axes, ("tp", "cp")), (self._mesh, ("fsdp", "dp_replicate")))
        return {
            mesh.get_group(axis).group_name: (axis, dist.get_world_size(mesh.get_group(axis)))
            for mesh, axes in meshes
            for axis in axes
        }

    def split_of(self, stage: int, config: ModelConfig) -> Split:
        """The part of the model that this process holds of a stage."""
        last = self.config.n_stages - 1
        return Split(
            tp=self.config.tp,
            tp_rank=self.rank_on("tp"),
            tp_group=self._axes.get_group("tp"),
            cp=self.config.cp,
            cp_rank=self.rank_on("cp"),
            cp_group=self._axes.get_group("cp"),
            layers=self.config.stage_layers(config.n_layers)[stage],
            has_embedding=stage == 0,
            has_head=stage == last,
        )

    def build(self, config: ModelConfig) -> Transformer:
        """Make this process's stages, sharded, with memory but no values; returns the first of them.

        Args:
            config: Shape of the whole model. The layout fits it: see `parallel_config.check`.
        """
        numbers = self.config.stages_of(self.rank_on("pp"))
        for number in numbers:
            with torch.device("meta"):
                model = Transformer(config, self.split_of(number, config))
            self._shard(model)
            self.models.append(model)
        if self.machine.device.type != "meta":
            for model in self.models:
                model.to_empty(device="cpu" if self.config.offload != "none" else self.machine.device)
        self.weights = ShardedWeights(
            self.models, mesh_rank=self._mesh.get_local_rank("fsdp"), shard_ranks=self.config.shard_ranks
        )
        if self.config.n_stages > 1:
            self.pipeline = Pipeline(self.models, numbers, self.config, group=self.pp_group, dtype=self.machine.dtype)
        return self.models[0]

    def _shard(self, model: Transformer) -> None:
        prepare_blocks(model.layers, self.config, model.split)
        place = placements([model], self.config.shard_ranks)
        choice = self.config.reshard_after_forward
        reshard = self.config.pp == 1 if choice == "auto" else choice == "always"
        mesh = self._mesh["dp_replicate", "fsdp"] if self.config.dp_replicate > 1 else self._mesh["fsdp"]
        dtype = None if self.machine.dtype == torch.float32 else self.machine.dtype
        options: dict[str, Any] = {
            "mesh": mesh,
            # positions' cos and sin stay fp32: nothing is cast on the way in
            "mp_policy": MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False),
            "offload_policy": OffloadPolicy()
            if self.config.offload == "none"
            else CPUOffloadPolicy(pin_memory=self.machine.device.type == "cuda"),
            "shard_placement_fn": lambda parameter: place[parameter],
        }
        for layer in model.layers:
            fully_shard(layer, reshard_after_forward=reshard, **options)
        if model.embedding is not None and not model.config.tie_embeddings:
            fully_shard(model.embedding, reshard_after_forward=reshard, **options)
        fully_shard(model, reshard_after_forward=False, **options)  # the loss needs the head right after
        for module in _sharded(model):
            module.set_gradient_divide_factor(1.0)  # sums, not means
            module.set_force_sum_reduction_for_comms(True)
        if self.config.n_stages == 1:  # in a pipeline the schedule calls the model itself
            register_fsdp_forward_method(model, "hidden")

    def init_weights(self, seed: int) -> None:
        """Fill the shards with the first weights of a seed, parameter by parameter."""
        with torch.no_grad():
            for model in self.models:
                for name, _ in model.named_parameters():
                    part = first_part(name, model, seed)
                    self.weights.named[name].copy_(self.weights.narrow(name, part))

    def load_weights(self, path: Path, config: ModelConfig, *, without: Collection[str] = ()) -> None:
        """Fill the shards from a model, each process reading its own boxes.

        Args:
            path: The model.
            config: Its shape; what has no weights (context, rotary frequencies) may differ from the run's.
            without: Parameters that it does not have.

        Raises:
            PunaError: It cannot be read, or is another model.
        """
        weights = self.weights
        wanted = {name: tensor for name, tensor in weights.held.items() if name not in without}
        fill_from_model(path, config, logical(wanted, segments_of(config), of=weights.pieces))

    def fill(self, name: str, whole: Tensor) -> None:
        """Fill this process's box of one parameter, which no tensor parallelism cuts."""
        with torch.no_grad():
            self.weights.named[name].copy_(self.weights.narrow(name, whole))

    def backward(self, loss: Loss, batches: Batches, n: int) -> list[LossOutput]:
        """Forward and backward of the n micro-batches of a step.

        Returns:
            What the loss gave here; nothing where a pipeline has no head.
        """
        read = [batches.next_batch() for _ in range(n)]
        if self.pipeline is not None:
            return self.pipeline.backward(loss, read)
        model, outputs = self.models[0], []
        for number, batch in enumerate(read):
            last = number == n - 1
            model.set_is_last_backward(last)  # pyright: ignore[reportCallIssue]
            # copies are added up once a step; shards with every micro-batch, or whole gradients would have to be kept
            model.set_requires_all_reduce(last)  # pyright: ignore[reportCallIssue]
            output = loss(model, batch)
            output.sum.backward()
            outputs.append(output.detached())
        return outputs

    def reduce(self, outputs: Sequence[LossOutput], wishes: Sequence[bool] = ()) -> Figures:
        """Bring gradients and figures of a step together; every process gets the same.

        Args:
            outputs: From `backward`.
            wishes: Flags of this process, for example that it was asked to stop.
        """
        weights = self.weights
        weights.collect()
        self._add_norm_gradients()
        squares = self._squares()
        return self._figures(outputs, wishes, squares)

    def score(self, loss: Loss, batches: Sequence[Any]) -> tuple[float, float]:
        """Sum of a loss over batches of all processes, and its terms, without gradients."""
        if self.pipeline is not None:
            outputs = self.pipeline.forward(loss, batches)
        else:
            with torch.no_grad():
                outputs = [loss(self.models[0], batch).detached() for batch in batches]
        figures = self._figures(outputs, (), torch.zeros((), dtype=torch.float64))
        return figures.loss_sum, figures.count

    def _figures(self, outputs: Sequence[LossOutput], wishes: Sequence[bool], squares: Tensor) -> Figures:
        """One exchange for everything. Losses of a tensor-parallel group are equal: its first process tells them."""
        names, device = sorted(outputs[0].metrics) if outputs else [], self._exchange_device()
        if names and self.config.pp > 1:
            raise UsageError("a loss with figures of its own cannot be trained with parallel.pp > 1")
        told = outputs if self.rank_on("tp") == 0 else ()
        # copies (dp_replicate) hold the same gradients: one of them counts
        own_squares = squares if self.rank_on("dp_replicate") == 0 else torch.zeros_like(squares)
        return exchange(told, wishes, own_squares, names=names, device=device)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of a host tensor over all processes."""
        return add_up(values, self._exchange_device())

    def _exchange_device(self) -> torch.device:
        return self.machine.device

    def _squares(self) -> Tensor:
        """Sum of the squares of the gradients that this process answers for, fp64."""
        first = self.rank_on("tp") == 0
        counted = [
            weight.grad
            for name, weight in self.weights.named.items()
            if weight.grad is not None and (first or not name.endswith("norm.weight"))
        ]
        if not counted:
            return torch.zeros((), dtype=torch.float64, device=self.machine.device)
        norms = torch.stack(torch._foreach_norm(counted))  # pyright: ignore[reportPrivateImportUsage]
        return norms.double().square().sum()

    def _add_norm_gradients(self) -> None:
        """Sum the gradients of the norms, which saw a share of the tokens each, over the tensor-parallel group."""
        if self.config.tp == 1:
            return
        named = self.weights.named.items()
        gradients = [w.grad for name, w in named if w.grad is not None and name.endswith("norm.weight")]
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients]).to(self._exchange_device())
        dist.all_reduce(flat, group=self._axes.get_group("tp"))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.config.world_size

    @property
    def speaks(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return dist.get_rank() == 0


def _sharded(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def meet(config: ParallelConfig, machine: Machine, model: ModelConfig, works: Sequence[Work]) -> Ranks | None:
    """Join the other processes of the run; None when there is one.

    Args:
        config: The layout as the recipe has it.
        machine: From `choose_machine`.
        model: Shape of the model.
        works: What a step has to deal out; several where the batch grows.

    Raises:
        ConfigError: The layout does not fit the number of processes, the model or the work.
    """
    resolved = config.resolve(dist.get_world_size() if dist.is_initialized() else 1)
    for work in works:
        check(resolved, model, work)
    return None if resolved.is_single else Ranks(resolved, machine)


def join() -> None:
    """Find the other processes that torchrun started. The first thing that each of them does."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(minutes=10))
    else:
        dist.init_process_group("gloo", timeout=timedelta(minutes=10))


def word_of_the_first(word: str) -> str:
    """What the first process says to all; the others' own words do not count."""
    box = [word]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def leave() -> None:
    """Close what `join` opened."""
    if dist.is_initialized():
        dist.destroy_process_group()
