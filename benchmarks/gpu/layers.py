"""Model FLOP utilization of Llama-shaped layers on one GPU: packed documents, torch.compile, selective checkpointing.

A step is forward, loss, backward, clipping and fused AdamW over rows of packed documents, in bf16. Layers have the
width of the 1B, 3B and 8B; there are as many of them as fit one card with optimizer states. FLOPs are counted by the
causal convention within documents, recomputed ones not; MFU is over the card's dense 16-bit peak.

Sides, in turns, each with its own model: ours; transformers (sdpa or FlashAttention 2 where it is installed, documents
from restarting positions, its own gradient checkpointing); torchtitan where it is installed (its Llama with
variable-length attention, our checkpointing of its blocks). The ratio is the median of the ratios of neighbouring
steps. A side that cannot run says why.

    python benchmarks/gpu/layers.py                          # every shape and mode, about ten minutes
    python benchmarks/gpu/layers.py --shape 8B --mode compile --profile trace.json
    python benchmarks/gpu/layers.py --quick --json           # the 1B alone, under 50 s after compilation
    python benchmarks/gpu/layers.py --device cpu             # a toy, to see that all sides run
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puna.core.batch import PackedBatch
from puna.model.config import SIZES, ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.planner.hardware import find_gpu
from puna.train.loss import next_token_loss, packed_flops

MODES = ("plain", "compile", "selective", "compile+selective", "full")
LAYERS = {"1B": 16, "3B": 12, "8B": 6}
"""Layers of each shape that fit 80 GB with embeddings, head, gradients and AdamW in fp32."""
Step = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    name: str
    config: ModelConfig
    rows: int
    tokens: int
    mean_document: int


def case(name: str, *, device: str, tokens: int, rows: int, mean_document: int) -> Case:
    """A shape; on a CPU a toy of it."""
    size = SIZES[name]
    changes: dict[str, Any] = {
        "n_layers": LAYERS[name],
        "rope_scaling": None,
        "max_seq_len": tokens,
        "tie_embeddings": True,
    }
    if device == "cpu":
        changes |= {
            "dim": 64,
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 16,
            "ffn_dim": 128,
            "n_layers": 2,
            "vocab_size": 512,
        }
    return Case(name, size.model_copy(update=changes), rows, tokens, mean_document)


def make_batch(given: Case) -> PackedBatch:
    """Random tokens in rows that are cut into documents of exponential length."""
    generator = np.random.default_rng(0)
    total, lengths = given.rows * given.tokens, []
    while sum(lengths) < total:
        room = given.tokens - sum(lengths) % given.tokens
        lengths.append(min(1 + int(generator.exponential(given.mean_document)), room))
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    shape = given.rows, given.tokens
    return PackedBatch(
        tokens=generator.integers(given.config.vocab_size, size=shape),
        targets=generator.integers(given.config.vocab_size, size=shape),
        positions=positions.reshape(shape),
        lengths=np.array(lengths),
        n_targets=total,
    )


def _keep_products(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep matrix products and attention, compute the rest again."""
    kept = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
    name = str(operation)
    save = operation in kept or "attention" in name or "varlen" in name
    return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE


def prepare(blocks: nn.ModuleList, mode: str) -> None:
    """Checkpoint and compile every block in place."""
    for block in blocks:
        if mode.endswith("selective") or mode == "full":
            again = partial(checkpoint, use_reentrant=False)
            if mode != "full":
                again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _keep_products))
            block.forward = partial(again, block.forward)  # pyright: ignore
        if mode.startswith("compile"):
            block.compile()


def _step(model: nn.Module, loss: Callable[[], torch.Tensor], device: str) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        start = time.perf_counter()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def ours(given: Case, batch: PackedBatch, mode: str, device: str) -> Step:
    """Our transformer and loss."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = init_weights(Transformer(given.config), seed=0).to(device, dtype)
    prepare(model.layers, mode)

    def loss() -> torch.Tensor:
        output = next_token_loss(model, batch)
        return output.sum / output.count

    return _step(model, loss, device)


def transformers(given: Case, batch: PackedBatch, mode: str, device: str) -> Step:
    """LlamaForCausalLM with its own means."""
    from importlib.util import find_spec

    from transformers import LlamaConfig, LlamaForCausalLM

    c = given.config
    config = LlamaConfig(
        hidden_size=c.dim,
        intermediate_size=c.ffn_dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_seq_len,
        tie_word_embeddings=c.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        use_cache=False,
    )
    kernel = "flash_attention_2" if device == "cuda" and find_spec("flash_attn") else "sdpa"
    config._attn_implementation = kernel
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = LlamaForCausalLM(config)
    model = model.to(device, dtype).train()
    if mode.endswith("selective") or mode == "full":  # it knows whole layers only
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if mode.startswith("compile"):
        for block in model.model.layers:
            block.compile()
    flat = {"tokens": batch.tokens, "targets": batch.targets, "positions": batch.positions.astype(np.int64)}
    held = {name: torch.from_numpy(value).reshape(1, -1).to(device) for name, value in flat.items()}

    def loss() -> torch.Tensor:
        return model(
            held["tokens"], position_ids=held["positions"], labels=held["targets"], shift_labels=held["targets"]
        ).loss

    return _step(model, loss, device)


class SideMissingError(Exception):
    """A side that cannot run here, with the reason."""


def torchtitan(given: Case, batch: PackedBatch, mode: str, device: str) -> Step:
    """Torchtitan's Llama, as far as its package is here; the API is that of 0.3."""
    try:
        from torchtitan.models.llama3 import llama3_configs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SideMissingError(f"torchtitan cannot be imported ({error}); pip install torchtitan") from error
    if device == "cpu":
        raise SideMissingError("torchtitan's attention runs on GPUs only")
    try:
        config: Any = llama3_configs[given.name]("varlen")
        config.layers = config.layers[: given.config.n_layers]
        config.enable_weight_tying = given.config.tie_embeddings
        model: Any = config.build().to(device, torch.bfloat16)
        model.init_states(buffer_device=torch.device(device))
        positions = torch.from_numpy(batch.positions.astype(np.int64)).to(device)
        masks = model.get_attention_masks(positions)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SideMissingError(f"torchtitan is installed with another API: {error}") from error
    prepare(nn.ModuleList(model.layers.values()), mode)
    tokens, targets = (torch.from_numpy(x).to(device) for x in (batch.tokens, batch.targets))

    def loss() -> torch.Tensor:
        logits = model(tokens, positions, masks)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return _step(model, loss, device)


SIDES = {"ours": ours, "transformers": transformers, "torchtitan": torchtitan}


def measure(given: Case, mode: str, *, device: str, rounds: int, sides: tuple[str, ...], peak: float) -> dict[str, Any]:
    """All sides in turns."""
    batch = make_batch(given)
    flops = packed_flops(given.config, batch.lengths)
    steps: dict[str, Step] = {}
    seconds: dict[str, list[float]] = {}
    found: dict[str, Any] = {"shape": given.name, "mode": mode}
    for side in sides:
        try:
            steps[side] = SIDES[side](given, batch, mode, device)
            for _ in range(3):  # compiles and warms up
                steps[side]()
            seconds[side] = []
        except (torch.cuda.OutOfMemoryError, SideMissingError) as error:
            found[f"{side}_skipped"] = str(error) if isinstance(error, SideMissingError) else "out of memory"
            steps.pop(side, None)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        for side, step in steps.items():
            seconds[side].append(step())
    for side, values in seconds.items():
        median = statistics.median(values)
        found[f"{side}_tokens_per_s"] = batch.tokens.size / median
        found[f"{side}_mfu"] = flops / median / peak
    for side in seconds.keys() - {"ours"} if "ours" in seconds else ():
        pairs = zip(seconds["ours"], seconds[side], strict=True)
        found[f"ratio_{side}"] = statistics.median(b / a for a, b in pairs)
    return found


def profile(given: Case, mode: str, device: str, path: str) -> str:
    """Trace one step of ours, write it, and give the table of the heaviest kernels."""
    step = ours(given, make_batch(given), mode, device)
    for _ in range(3):
        step()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device == "cuda")
    with torch.profiler.profile(activities=kinds) as trace:
        step()
    trace.export_chrome_trace(path)
    return trace.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=15)


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(LAYERS), action="append", help="one shape alone; may be repeated")
    parser.add_argument("--mode", choices=MODES, action="append", help="one mode alone; may be repeated")
    parser.add_argument("--side", choices=tuple(SIDES), action="append", help="one side alone; may be repeated")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--mean-document", type=int, default=2048, help="mean length of a document, tokens")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--profile", metavar="TRACE.json", help="trace a step of ours instead")
    parser.add_argument("--quick", action="store_true", help="the 1B alone, plain and compiled, three rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    a = parser.parse_args(words)
    if a.device == "cuda" and not torch.cuda.is_available():
        print(
            "there is no GPU here: PyTorch sees no CUDA device. --device cpu runs a toy that shows that all sides work."
        )
        return 3
    if a.device == "cuda":
        name = torch.cuda.get_device_name()
        peak = find_gpu(name).bf16_flops
        print(f"{name}, {peak / 1e12:.0f} TFLOPS in 16 bits, torch {torch.__version__}")
    else:
        peak, a.tokens, a.rows, a.mean_document = 1e11, 128, 1, 32
        print("a toy on the CPU: speeds and MFU mean nothing")
    shapes = a.shape or (["1B"] if a.quick else list(LAYERS))
    modes = a.mode or (["plain", "compile"] if a.quick else list(MODES))
    sides = tuple(a.side or SIDES)
    cases = [case(s, device=a.device, tokens=a.tokens, rows=a.rows, mean_document=a.mean_document) for s in shapes]
    if a.profile:
        print(profile(cases[0], modes[-1], a.device, a.profile))
        return 0
    results = []
    for given in cases:
        for mode in modes:
            found = measure(given, mode, device=a.device, rounds=3 if a.quick else a.rounds, sides=sides, peak=peak)
            results.append(found)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
            if a.device == "cuda":
                torch.cuda.empty_cache()
    if a.json:
        print(json.dumps({"results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
