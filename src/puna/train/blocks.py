"""What is done to each block before it is sharded: recomputation of activations, the compiler, float8.

Recomputing trades work for memory: `full` keeps a block's input only and runs the block again in the backward (a third
more work); `selective` keeps the results of matrix products and attention kernels, which cost most to make and little
to hold, and computes the rest again; `budget` lets the compiler choose what to keep.

A block's `forward` is replaced on the instance, so that names stay and FSDP's hooks, which sit on the call, enclose it.

Source: Training Deep Nets with Sublinear Memory Cost (1604.06174); selective: 2205.05198, section 4.2.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puna.core.errors import need
from puna.model.split import Split
from puna.train.parallel_config import ParallelConfig

KEPT = (
    "aten.mm.default",
    "aten.addmm.default",
    "aten._scaled_mm.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch_attn._varlen_attn.default",
)
"""Operators whose results selective recomputation keeps."""


def prepare_blocks(layers: nn.ModuleList, config: ParallelConfig, split: Split) -> None:
    """Set up every block as the layout asks.

    Args:
        layers: The blocks of a stage, not yet sharded.
        config: The layout.
        split: The process, for the group of tensor parallelism.
    """
    if config.float8 != "none":
        _use_float8(layers, config.float8)
    if config.compile and config.recompute == "budget":
        torch._functorch.config.activation_memory_budget = config.memory_budget  # pyright: ignore
    if config.async_tp:
        from torch.distributed._symmetric_memory import enable_symm_mem_for_group

        torch._inductor.config._micro_pipeline_tp = True  # pyright: ignore
        enable_symm_mem_for_group(split.tp_group.group_name)
    for block in layers:
        forward: Any = block.forward
        if config.recompute in ("full", "selective"):
            forward = _recomputed(forward, selective=config.recompute == "selective")
        if config.compile:
            forward = torch.compile(forward)
        block.forward = forward


def _recomputed(forward: Any, *, selective: bool) -> Any:
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here draws
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, forward, **options)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(op) in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _use_float8(layers: nn.ModuleList, recipe: str) -> None:
    float8 = need("torchao.float8", extra="float8")
    float8.convert_to_float8_training(layers, config=float8.Float8LinearConfig.from_recipe_name(recipe))
