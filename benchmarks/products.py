"""Matrix products of a training step on a CPU, fp32: oneDNN, as `model/products.py` asks it, against PyTorch's `mm`.

The shapes are those of the S and M steps of `train_cpu.py`: one chunk of tokens through each matrix, forward and
backward, and each factor lies in memory as the kernels have it. Both sides take turns; a rate is of the median time.

    python benchmarks/products.py            # a minute
    python benchmarks/products.py --quick    # S alone
    python benchmarks/products.py --json     # the last line: {"S": {product: ratio}, "M": ...}, oneDNN over mm in speed
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from puna.model import products
from puna.model.cpu_memory import keep_freed_memory

Factors = tuple[Tensor, Tensor]


def cases(dim: int, ffn: int, vocab: int, tokens: int, logits: int) -> dict[str, Factors]:
    """The factors of each product: C tokens of a chunk, their logits a chunk of their own."""
    rand = torch.randn
    return {
        "qkv": (rand(tokens, dim), rand(2 * dim, dim).T),
        "gate and up": (rand(2 * ffn, dim), rand(tokens, dim).T),
        "gradient of h": (rand(ffn, dim), rand(tokens, dim).T),
        "gradient of down": (rand(ffn, tokens), rand(tokens, dim)),
        "gradient of gate and up": (rand(2 * ffn, tokens), rand(tokens, dim)),
        "logits": (rand(logits, dim), rand(vocab, dim).T),
        "gradient of hidden": (rand(logits, vocab), rand(vocab, dim)),
    }


def seconds(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each side, in turns; the first two rounds warm up."""
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 2):
        for side, times in zip(sides, taken, strict=True):
            start = time.perf_counter()
            side()
            if number >= 2:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="S alone")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    shapes = {"S": cases(256, 688, 8_192, 1_344, 1_024)}
    if not arguments.quick:
        shapes["M"] = cases(768, 2_048, 32_768, 512, 256)
    ratios: dict[str, dict[str, float]] = {}
    print("                            GFLOP/s oneDNN       mm   ratio")
    for size, pairs in shapes.items():
        ratios[size] = {}
        for name, (left, right) in pairs.items():
            flops = 2e-9 * left.shape[0] * left.shape[1] * right.shape[1]
            ours, theirs = seconds([lambda: products.product(left, right), lambda: left @ right], 31)  # noqa: B023
            ratios[size][name] = theirs / ours
            print(f"{size}  {name:<28} {flops / ours:10.0f} {flops / theirs:8.0f} {theirs / ours:7.2f}", flush=True)
    if arguments.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
