"""Tokenizer speed beside its peers, in one run: encoding against tiktoken, training against Hugging Face tokenizers.

The text is what the machine has: the interpreter's standard library and the installed packages' code and
documentation, shuffled with a fixed seed. Encoding: one thread each, the same ranks, the same documents; each round
takes documents that neither has seen, first ours, then theirs, and the medians over the rounds are compared; the ids
must be equal. Training: a process of its own for each trainer, the same file, all cores; time is that of training
alone, memory the process's peak.

    python benchmarks/tokenizer.py            # 32,768 ranks, 100 MB
    python benchmarks/tokenizer.py --quick    # 8,192 ranks, 6 MB, under 50 s
    python benchmarks/tokenizer.py --json     # the last line is one JSON object
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.ranks import read_ranks, write_ranks
from puna.tokenizer.specials import COUNT
from puna.tokenizer.split import PATTERN, official_pieces
from puna.tokenizer.train import train_bpe

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}
SEPARATOR = "\x1e"
ROUNDS = 9


def collect(n_bytes: int) -> list[str]:
    """Text files of this machine, in a fixed order, until they hold `n_bytes`."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = sorted({f for root in roots for f in root.rglob("*") if f.suffix in SUFFIXES and f.is_file()})
    random.Random(0).shuffle(files)
    texts: list[str] = []
    left = n_bytes
    for file in files:
        text = file.read_bytes().decode("utf-8", "replace").replace(SEPARATOR, "")
        if text:
            texts.append(text)
            left -= len(text.encode())
        if left <= 0:
            break
    return texts


def read_texts(path: Path) -> Iterator[str]:
    """Stream the documents of a file that `main` wrote."""
    rest = ""
    with path.open(encoding="utf-8", newline="") as file:
        while block := file.read(1 << 20):
            *whole, rest = (rest + block).split(SEPARATOR)
            yield from whole


def train_ours(path: Path, n_ranks: int) -> None:
    """Train as the product does and leave the ranks beside the text."""
    tokenizer = train_bpe(read_texts(path), vocab_size=n_ranks + COUNT)
    write_ranks(path.with_suffix(".tiktoken"), tokenizer.ranks)


def train_theirs(path: Path, n_ranks: int) -> None:
    """Train with Hugging Face tokenizers: same split, same alphabet, same size."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_ranks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(read_texts(path), trainer)


def child(who: str, path: Path, n_ranks: int) -> None:
    """Train in this process; the last line says seconds and peak GiB."""
    start = time.perf_counter()
    (train_ours if who == "ours" else train_theirs)(path, n_ranks)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib()}))


def peak_gib() -> float:
    """Largest resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would count the parent's memory before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def measure_training(path: Path, n_ranks: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of both trainers, run in turns."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for who, results in runs.items():
            line = [sys.executable, __file__, "--child", who, str(path), str(n_ranks)]
            out = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(out.splitlines()[-1]))
    return {
        who: {key: statistics.median(result[key] for result in results) for key in ("seconds", "peak_gib")}
        for who, results in runs.items()
    }


def measure_encoding(ranks: dict[bytes, int], texts: list[str]) -> dict[str, float]:
    """MB/s of both encoders on one thread: medians over rounds of unseen documents.

    Raises:
        SystemExit: Some ids differ.
    """
    texts = [text for text in texts if len(official_pieces(text)) == 1]  # Llama 3 cuts the others, plain tiktoken not
    ours = Tokenizer(ranks)
    theirs = tiktoken.Encoding("peer", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for warm in ("warm up", "once"):
        assert ours.encode(warm) == theirs.encode_ordinary(warm)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    encoders = {"ours": ours.encode_array, "theirs": theirs.encode_to_numpy}
    for i in range(ROUNDS):
        part = texts[i::ROUNDS]
        megabytes = sum(len(text.encode()) for text in part) / 1e6
        ids = {}
        for who, encode in encoders.items():
            extra = {} if who == "ours" else {"disallowed_special": ()}
            start = time.perf_counter()
            ids[who] = [encode(text, **extra) for text in part]
            speeds[who].append(megabytes / (time.perf_counter() - start))
        if not all(np.array_equal(a, b) for a, b in zip(ids["ours"], ids["theirs"], strict=True)):
            raise SystemExit("the ids differ from tiktoken's")
    return {who: statistics.median(values) for who, values in speeds.items()}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8,192 ranks on 6 MB")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "FILE", "RANKS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, path, n_ranks = options.child
        child(who, Path(path), int(n_ranks))
        return
    n_ranks, n_bytes, repeats = (8_192, 6_000_000, 1) if options.quick else (32_768, 100_000_000, 3)
    texts = collect(n_bytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"text: {len(texts)} files, {size:.1f} MB; {n_ranks} ranks")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.bin"
        path.write_text("".join(text + SEPARATOR for text in texts), encoding="utf-8", newline="")
        training = measure_training(path, n_ranks, repeats)
        ranks = read_ranks(path.with_suffix(".tiktoken"))
    for who, name in (("ours", "puna"), ("theirs", "Hugging Face tokenizers")):
        print(f"train   {name:24} {training[who]['seconds']:7.1f} s  peak {training[who]['peak_gib']:.2f} GiB")
    encoding = measure_encoding(ranks, texts if options.quick else texts[: len(texts) // 2])
    for who, name in (("ours", "puna"), ("theirs", "tiktoken")):
        print(f"encode  {name:24} {encoding[who]:7.1f} MB/s on one thread")
    result = {
        "encode_ratio_tiktoken": round(encoding["ours"] / encoding["theirs"], 2),
        "train_ratio_tokenizers": round(training["theirs"]["seconds"] / training["ours"]["seconds"], 2),
        "train_peak_gib": round(training["ours"]["peak_gib"], 3),
    }
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
