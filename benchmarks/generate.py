"""Decoding speed against its floor: the time that reading the weights once takes, and against transformers.

At batch 1 every weight is read for one token, so memory bandwidth divided by the bytes read per token is a ceiling
that no engine passes. At batch 32 the same bytes serve 32 tokens, and arithmetic becomes the limit. Weights are random:
speed does not depend on them. Ours, the bandwidth and transformers take turns, so that noise of the machine hits all;
medians are told. float32.

    python benchmarks/generate.py            # 126 M parameters
    python benchmarks/generate.py --quick    # 8.5 M parameters, under 50 s
    python benchmarks/generate.py --json     # the last line is one JSON object
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from puna.core.generator import Sampling
from puna.infer.engine import Engine
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

SHAPES = {
    "S": {"dim": 256, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 688, "vocab_size": 8192},
    "M": {"dim": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 4, "ffn_dim": 2048, "vocab_size": 32768},
}
N_PROMPT = 32  # short: only what follows it is timed
PROMPT = "x" * (N_PROMPT - 1)  # single bytes after begin-of-text


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def our_engine(config: ModelConfig) -> Engine:
    """An engine with random weights and a tokenizer of single bytes."""
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)})
    return Engine(init_weights(Transformer(config), seed=0), tokenizer, max_batch=32)


def peer(config: ModelConfig) -> LlamaForCausalLM:
    """Transformers' model of the same shape."""
    shape = LlamaConfig(
        hidden_size=config.dim,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_seq_len,
    )
    return LlamaForCausalLM(shape).eval()


def measure(config: ModelConfig, *, n_new: int, rounds: int) -> dict[str, float]:
    """Tokens per second after the prompt, ours and theirs, and what bandwidth would allow."""
    engine, theirs = our_engine(config), peer(config)
    n_bytes = 4 * sum(p.numel() for n, p in engine.model.named_parameters() if not n.startswith("embedding"))
    memory = torch.ones(2**26)  # 256 MiB: no cache holds it
    found: dict[str, list[float]] = {}

    def ours(batch: int, n: int) -> float:
        sampling = Sampling(max_tokens=n, temperature=0, ignore_eos=True)
        return seconds(lambda: engine.complete([PROMPT] * batch, sampling))

    @torch.inference_mode()
    def peers(batch: int, n: int) -> float:
        tokens = torch.ones(batch, N_PROMPT, dtype=torch.long)
        limits = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
        return seconds(lambda: theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **limits))

    for batch in (1, 32):  # warm up: first use allocates the caches
        ours(batch, 2), peers(batch, 2)
    for _ in range(rounds):
        found.setdefault("read_gb_s", []).append(memory.nbytes / seconds(memory.sum) / 1e9)
        for batch in (1, 32):
            for name, run in (("puna", ours), ("transformers", peers)):
                decode = run(batch, n_new + 1) - run(batch, 1)  # the prompt's share taken off
                found.setdefault(f"{name}_{batch}", []).append(batch * n_new / decode)
    medians = {name: statistics.median(values) for name, values in found.items()}
    floor = medians["read_gb_s"] * 1e9 / n_bytes
    return {**medians, "bandwidth_tokens_per_s": floor, "bandwidth_fraction": medians["puna_1"] / floor}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small shape, few rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--threads", type=int, default=2, help="of torch; on a busy machine 1 is faster than 2")
    arguments = parser.parse_args()
    name = "S" if arguments.quick else "M"
    torch.set_num_threads(arguments.threads)
    config = ModelConfig(**SHAPES[name], max_seq_len=256)
    found = measure(config, n_new=24 if arguments.quick else 32, rounds=2 if arguments.quick else 5)
    print(f"shape {name}, {config.parameters():,} parameters, float32, {torch.get_num_threads()} threads")
    limit = found["bandwidth_tokens_per_s"]
    print(f"read bandwidth {found['read_gb_s']:.1f} GB/s = at most {limit:.1f} tokens/s at batch 1")
    for batch in (1, 32):
        own, other = found[f"puna_{batch}"], found[f"transformers_{batch}"]
        print(f"batch {batch:2d}: puna {own:8.1f} tokens/s   transformers {other:8.1f}   ratio {own / other:.2f}")
    print(f"batch 1 reaches {found['bandwidth_fraction']:.0%} of the bandwidth limit")
    if arguments.json:
        ratios = {f"ratio_transformers_{b}": found[f"puna_{b}"] / found[f"transformers_{b}"] for b in (1, 32)}
        print(json.dumps({"shape": name, **found, **ratios}))


if __name__ == "__main__":
    main()
