"""Saving and converting checkpoints: how long training waits, how long all takes, how much memory conversion needs.

Saving: the 126 M model of `train_cpu.py` and its AdamW state (1.5 GB), by our store, torch.save, DCP save and DCP
async_save, in turns in one process, everything flushed to disk on every side. "Blocks" is how long the call keeps
training waiting, "total" is until the checkpoint is whole on disk; ours includes SHA-256 of every byte. First saves
(buffers, imports) are made once before the turns. A ratio is the median of the ratios of neighbouring turns, ours over
theirs: below 1, ours is faster.

Converting (`--convert LAYERS`): a bf16 checkpoint of Llama 3 70B's widths with that many layers, as 8 ranks wrote it,
to a Hugging Face folder; peak resident memory of the process. 5 layers need 26 GB of disk for both.

    python benchmarks/checkpoint.py              # about two minutes
    python benchmarks/checkpoint.py --quick      # fewer turns, under 50 s
    python benchmarks/checkpoint.py --convert 5  # the conversion alone
    python benchmarks/checkpoint.py --json       # the last line is one JSON object
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from puna.checkpoint import huggingface
from puna.checkpoint.export import export
from puna.checkpoint.format import write_side
from puna.checkpoint.layout import Layout, Place, Stored
from puna.checkpoint.logical import logical, segments_of
from puna.checkpoint.safetensors_file import Entry, write_file
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.core import files
from puna.model.config import SIZES, ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer

M = ModelConfig(dim=768, n_layers=12, n_heads=12, n_kv_heads=4, ffn_dim=2_048, vocab_size=32_768)
RANKS = 8


def make_state() -> dict[str, dict[str, torch.Tensor]]:
    """Weights and both AdamW moments."""
    weights = {n: p.detach() for n, p in init_weights(Transformer(M), seed=0).named_parameters()}
    return {"model": weights} | {
        k: {n: torch.rand_like(p) for n, p in weights.items()} for k in ("exp_avg", "exp_avg_sq")
    }


Save = Callable[[Path], tuple[float, float]]


def sides(state: dict[str, dict[str, torch.Tensor]], folder: Path) -> dict[str, Save]:
    """Each saves into a folder and gives seconds that it blocked, and seconds in all."""
    segments = segments_of(M)
    store = CheckpointStore(folder / "ours", asynchronous="always")
    moments = {k: logical(state[k], segments, pattern=f"optimizer/{{}}/{k}") for k in ("exp_avg", "exp_avg_sq")}
    snapshot = Snapshot(logical(state["model"], segments), moments["exp_avg"] | moments["exp_avg_sq"], {"step": 1})
    step = iter(range(1, 1000))

    def ours(path: Path) -> tuple[float, float]:
        start = time.perf_counter()
        store.save(
            next(step),
            snapshot,
            side=lambda f: write_side(f, M, tokenizer=None, card=None, dtype=torch.float32),
        )
        blocked = time.perf_counter() - start
        store.wait()
        return blocked, time.perf_counter() - start

    def torch_save(path: Path) -> tuple[float, float]:
        start = time.perf_counter()
        path.mkdir(parents=True)
        with (path / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        return seconds, seconds

    def dcp_save(path: Path) -> tuple[float, float]:
        start = time.perf_counter()
        dcp.save(dict(state), checkpoint_id=path)
        seconds = time.perf_counter() - start
        return seconds, seconds

    def dcp_async(path: Path) -> tuple[float, float]:
        start = time.perf_counter()
        future: Any = dcp.async_save(dict(state), checkpoint_id=path)
        blocked = time.perf_counter() - start
        future.result()
        return blocked, time.perf_counter() - start

    return {"ours": ours, "torch.save": torch_save, "DCP save": dcp_save, "DCP async_save": dcp_async}


def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Save in turns."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        state = make_state()
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(1 + rounds):
            for side, save in sides_once(state, folder).items():
                path = folder / f"{side}-{number}"
                seconds = save(path)
                shutil.rmtree(path, ignore_errors=True)
                if number:  # the first makes buffers
                    found.setdefault(side, []).append(seconds)
        dist.destroy_process_group()
    return found


_SIDES: dict[str, Save] = {}


def sides_once(state: dict[str, dict[str, torch.Tensor]], folder: Path) -> dict[str, Save]:
    """The same sides in every round: our buffers are kept."""
    if not _SIDES:
        _SIDES.update(sides(state, folder))
    return _SIDES


def ratio(found: dict[str, list[tuple[float, float]]], side: str, which: int) -> float:
    """Median of ours over theirs."""
    pairs = zip(found["ours"], found[side], strict=True)
    return statistics.median(a[which] / b[which] for a, b in pairs)


def make_big(folder: Path, config: ModelConfig) -> int:
    """A sealed checkpoint in row pieces of 8 ranks, written a piece at a time; returns its bytes."""
    folder.mkdir()
    write_side(folder, config, tokenizer=None, card=None, dtype=torch.bfloat16)
    parts = [part for _, parts in huggingface.tensor_map(config) for part in parts]
    noise = torch.randn(1 << 22).to(torch.bfloat16)
    stored: dict[str, list[Place]] = {part.name: [] for part in parts}
    known = {}
    for rank in range(RANKS):
        file, entries = f"weights-{rank + 1:05d}-of-{RANKS:05d}.safetensors", []
        for part in parts:
            rows = part.shape[0] // RANKS
            sizes = (rows, *part.shape[1:])
            offsets = (rank * rows, *(0 for _ in part.shape[1:]))
            key = f"{part.name}[{rank}]"
            entries.append(Entry(key, torch.bfloat16, sizes))
            stored[part.name].append(Place(offsets, sizes, file, key))

        def values(entries: list[Entry]) -> Any:
            for entry in entries:
                left = entry.nbytes // 2
                while left:
                    yield noise[: min(left, len(noise))]
                    left -= min(left, len(noise))

        written = write_file(folder / file, entries, values(entries))
        known[file] = (written.sha256, written.bytes)
    Layout({p.name: Stored(torch.bfloat16, p.shape, tuple(stored[p.name])) for p in parts}).write(folder)
    files.seal(folder, kind="checkpoint", known=known)
    return sum(size for _, size in known.values())


def _convert(source: Path, out: Path, pipe: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    start = time.perf_counter()
    export(source, out)
    seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    pipe.send((seconds, int(peak.split()[1]) / 2**20))


def convert(layers: int) -> dict[str, float]:
    """Convert a checkpoint of 70B's widths in a process of its own."""
    config = SIZES["70B"].model_copy(update={"n_layers": layers})
    with tempfile.TemporaryDirectory(dir=".") as name:
        n_bytes = make_big(Path(name) / "step-00000001", config)
        mine, theirs = multiprocessing.get_context("spawn").Pipe()
        arguments = (Path(name) / "step-00000001", Path(name) / "out", theirs)
        process = multiprocessing.get_context("spawn").Process(target=_convert, args=arguments)
        process.start()
        seconds, peak = mine.recv()
        process.join()
    return {"convert_gib": n_bytes / 2**30, "convert_seconds": seconds, "convert_peak_gib": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--convert", type=int, default=0, metavar="LAYERS", help="measure the conversion instead")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.convert:
        result = convert(arguments.convert)
        print(
            f"{result['convert_gib']:.1f} GiB in {RANKS} pieces to a Hugging Face folder: "
            f"{result['convert_seconds']:.0f} s, peak {result['convert_peak_gib']:.2f} GiB resident"
        )
    else:
        found = measure(1 if arguments.quick else 5)
        print("                  blocks (s)   total (s)")
        for side, seconds in found.items():
            blocked, total = (statistics.median(s[i] for s in seconds) for i in (0, 1))
            print(f"{side:<16} {blocked:11.3f} {total:11.3f}")
        result = {
            "block_ratio_dcp_save": ratio(found, "DCP save", 0),
            "block_ratio_dcp_async": ratio(found, "DCP async_save", 0),
            "total_ratio_dcp_save": ratio(found, "DCP save", 1),
        }
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
