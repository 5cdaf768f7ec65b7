"""Training throughput on a CPU, fp32: a whole step of ours against transformers and a plain PyTorch Llama.

A step is forward, loss, backward, clipping by the global norm and fused AdamW, each side by its own means: ours as
`puna pretrain` makes it (with malloc told to keep freed memory, as every training process of ours does), transformers
with its default attention (sdpa) and, packed, its own mask from restarting positions; plain PyTorch as one writes it
down, with a dense mask when packed. Without a mask a row is one document; with it, a row is cut into documents of 128
tokens on average (exponential), and no token sees another document.

Each side lives in a process of its own, so that its peak memory is its own. Sides take turns step by step, so that
noise of the machine hits all; a ratio is the median of the ratios of neighbouring steps. The matrix-product rate is
measured between the turns (1024 cubed, the best); the fraction counts FLOPs of the causal convention within documents.

    python benchmarks/train_cpu.py            # about six minutes on two quiet cores
    python benchmarks/train_cpu.py --quick    # same widths, fewer layers and rows, under 50 s
    python benchmarks/train_cpu.py --same-malloc   # transformers gets our malloc setting too
    python benchmarks/train_cpu.py --json     # the last line is one JSON object
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu
from transformers import LlamaConfig, LlamaForCausalLM

from puna.core.batch import PackedBatch
from puna.model.config import ModelConfig
from puna.model.cpu_memory import keep_freed_memory
from puna.model.init import init_weights
from puna.model.products import product
from puna.model.rope import frequencies
from puna.model.transformer import Transformer
from puna.train.loss import next_token_loss, packed_flops
from puna.train.optim import OptimConfig, build_optimizer, scale_and_clip

SIDES = ("ours", "transformers", "plain")
MEAN_DOCUMENT = 128  # tokens
Step = Callable[[], float]


@dataclass(frozen=True)
class Size:
    """A model and a micro-batch."""

    config: ModelConfig
    rows: int
    tokens: int
    rounds: int


def sizes(*, quick: bool) -> dict[str, Size]:
    """The two shapes; quick ones keep every width and the sequence length."""
    n_s, n_m = (3, 2) if quick else (6, 12)
    s = ModelConfig(dim=256, n_layers=n_s, n_heads=8, n_kv_heads=4, ffn_dim=688, vocab_size=8_192)
    m = ModelConfig(dim=768, n_layers=n_m, n_heads=12, n_kv_heads=4, ffn_dim=2_048, vocab_size=32_768)
    if quick:
        return {"S": Size(s, rows=4, tokens=512, rounds=3), "M": Size(m, rows=1, tokens=1024, rounds=1)}
    return {"S": Size(s, rows=8, tokens=512, rounds=9), "M": Size(m, rows=2, tokens=1024, rounds=3)}


def make_batch(size: Size, *, masked: bool) -> PackedBatch:
    """Random tokens in rows; every token has a target, so that all sides compute the same."""
    generator = np.random.default_rng(0)
    total = size.rows * size.tokens
    lengths: list[int] = [] if masked else [size.tokens] * size.rows
    while sum(lengths) < total:
        room = size.tokens - sum(lengths) % size.tokens
        lengths.append(min(1 + int(generator.exponential(MEAN_DOCUMENT)), room))
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    shape = size.rows, size.tokens
    return PackedBatch(
        tokens=generator.integers(size.config.vocab_size, size=shape),
        targets=generator.integers(size.config.vocab_size, size=shape),
        positions=positions.reshape(shape),
        lengths=np.array(lengths),
        n_targets=total,
    )


def ours(size: Size, batch: PackedBatch) -> Step:
    """The step of `train/loop.py` without its bookkeeping."""
    model = init_weights(Transformer(size.config), seed=0)
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())

    def step() -> float:
        output = next_token_loss(model, batch)
        output.sum.backward()
        scale_and_clip([p.grad for p in model.parameters() if p.grad is not None], count=output.count, clip_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(output.sum.detach()) / output.count

    return step


def _peer_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def transformers(size: Size, batch: PackedBatch) -> Step:
    """LlamaForCausalLM, eager; it finds the documents in the positions and masks with a 4-D mask."""
    c = size.config
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=c.dim,
            intermediate_size=c.ffn_dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            vocab_size=c.vocab_size,
            max_position_embeddings=c.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            use_cache=False,
        )
    )
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    packed = len(batch.lengths) > size.rows
    positions = torch.from_numpy(batch.positions).long() if packed else None
    return _peer_step(model, lambda: model(tokens, position_ids=positions, labels=targets, shift_labels=targets).loss)


class PlainLlama(nn.Module):
    """Llama 3 as one writes it down in PyTorch: one linear per matrix, SDPA, all logits."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the layers."""
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        shapes = {
            "q": (c.dim, c.dim),
            "k": (c.dim, c.n_kv_heads * c.head_dim),
            "v": (c.dim, c.n_kv_heads * c.head_dim),
            "o": (c.dim, c.dim),
            "gate": (c.dim, c.ffn_dim),
            "up": (c.dim, c.ffn_dim),
            "down": (c.ffn_dim, c.dim),
        }
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})
            for _ in range(c.n_layers)
        )
        self.norms = nn.ParameterList(torch.ones(c.dim) for _ in range(2 * c.n_layers + 1))
        self.head = nn.Linear(c.dim, c.vocab_size, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of rows of tokens."""
        angles = positions[..., None].float() * frequencies(self.config)
        cos, sin = (torch.cat((x, x), dim=-1)[:, None] for x in (angles.cos(), angles.sin()))
        x = self.embedding(tokens)
        for number, layer in enumerate(self.layers):
            x = x + self._attention(layer, self._norm(x, 2 * number), cos, sin, mask)
            h = self._norm(x, 2 * number + 1)
            x = x + layer["down"](silu(layer["gate"](h)) * layer["up"](h))  # pyright: ignore
        return self.head(self._norm(x, -1))

    def _norm(self, x: Tensor, number: int) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.norms[number], self.config.norm_eps)

    def _attention(self, layer: Any, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (layer[name](h).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2) for name in "qkv")
        q, k = (x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (q, k))
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return layer["o"](o.transpose(1, 2).flatten(2))


def plain(size: Size, batch: PackedBatch) -> Step:
    """The plain model; packed documents by a dense boolean mask made once."""
    model = PlainLlama(size.config)
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    positions = torch.from_numpy(batch.positions)
    mask = None
    if len(batch.lengths) > size.rows:
        document = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.from_numpy(batch.lengths))
        document = document.view(size.rows, size.tokens)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    return _peer_step(model, lambda: cross_entropy(model(tokens, positions, mask).flatten(0, 1), targets.flatten()))


def work(side: str, size: Size, masked: bool, keep_memory: bool, threads: int, pipe: Connection) -> None:
    """A process: makes one side, then answers each message with the seconds of a step; None ends it with the peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if keep_memory:
        keep_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    step = {"ours": ours, "transformers": transformers, "plain": plain}[side](size, make_batch(size, masked=masked))
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    pipe.send(int(peak.split()[1]) / 2**20)  # GiB


def matmul_flops(threads: int) -> float:
    """FLOP/s of one 1024-cubed product, the best of three by `mm` and three by oneDNN."""
    torch.set_num_threads(threads)
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    best = float("inf")
    for multiply in (torch.mm, product) * 3:
        start = time.perf_counter()
        multiply(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def compare(size: Size, *, masked: bool, same_malloc: bool, threads: int) -> dict[str, float]:
    """Run the sides in turns and put their figures together."""
    context = multiprocessing.get_context("fork")
    pipes: dict[str, Connection] = {}
    processes = []
    for side in SIDES:
        mine, theirs = context.Pipe()
        keep = side == "ours" or same_malloc
        process = context.Process(target=work, args=(side, size, masked, keep, threads, theirs), daemon=True)
        process.start()
        pipes[side] = mine
        processes.append(process)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for round_number in range(1 + size.rounds):
        for side in SIDES:
            pipes[side].send(True)
            taken = pipes[side].recv()
            if round_number:  # the first step warms up
                seconds[side].append(taken)
    peak = {}
    for side, process in zip(SIDES, processes, strict=True):
        pipes[side].send(None)
        peak[side] = pipes[side].recv()
        process.join()
    n_tokens = size.rows * size.tokens

    def ratio(side: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds["ours"], seconds[side], strict=True))

    best = min(seconds["ours"])
    return {
        "tokens_per_s": n_tokens / statistics.median(seconds["ours"]),
        "ratio_transformers": ratio("transformers"),
        "ratio_plain": ratio("plain"),
        "flops_per_s": packed_flops(size.config, make_batch(size, masked=masked).lengths) / best,
        "peak_gib": peak["ours"],
        "peak_gib_transformers": peak["transformers"],
    }


def measured_rate(threads: int) -> float:
    """`matmul_flops` in a process of its own: this one must not start threads before it forks."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(matmul_flops, (threads,))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers and rows, under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--same-malloc", action="store_true", help="the peers keep freed memory too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("S", "M"), help="one size alone")
    arguments = parser.parse_args()
    rates = [measured_rate(arguments.threads)]
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, size in sizes(quick=arguments.quick).items():
        if arguments.only not in (None, name):
            continue
        results[name] = {}
        for key in ("unmasked", "masked"):
            results[name][key] = compare(
                size, masked=key == "masked", same_malloc=arguments.same_malloc, threads=arguments.threads
            )
            rates.append(measured_rate(arguments.threads))
    print(f"matrix products: {max(rates) / 1e9:.0f} GFLOP/s with {arguments.threads} threads (fp32, 1024 cubed, best)")
    print("              tokens/s   x transformers   x plain   of matmul rate   peak GiB (transformers)")
    for name, rows in results.items():
        for key, row in rows.items():
            row["matmul_fraction"] = row.pop("flops_per_s") / max(rates)
            print(
                f"{name} {key:<9} {row['tokens_per_s']:10,.0f} {row['ratio_transformers']:16.2f}"
                f" {row['ratio_plain']:9.2f} {row['matmul_fraction']:16.2f}"
                f" {row['peak_gib']:10.2f} ({row['peak_gib_transformers']:.2f})"
            )
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
