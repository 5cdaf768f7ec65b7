"""The reference's log probabilities of all pairs, computed once and kept in the run folder.

DPO compares with a model that never changes, so it need not sit in memory beside the one that learns. The sums are kept
under a name that is a hash of all that they depend on: the reference's weights, the tokenizer, the pairs' tokens and
masks (and with them data, template, length and format mask). A run that is killed and started again finds them; one
that changes anything computes them anew. What is kept is `[pairs, 2]` float32 and a checksum; a damaged file is made
again.

Shapes: P pairs of a batch.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from puna.core import console
from puna.core.files import atomic_open
from puna.model.transformer import Transformer
from puna.post.dpo import DpoConfig, answer_sums
from puna.post.packing import best_fit_decreasing
from puna.post.pairs import EncodedPairs, pack_pairs
from puna.post.share import DataRanks

_VERSION = 1  # raise it when the sums are computed in another way


def cache_key(pairs: EncodedPairs, *, model_fingerprint: str, tokenizer_fingerprint: str) -> str:
    """Hash of all that the sums depend on, but for the device's rounding."""
    parts = (str(_VERSION), model_fingerprint, tokenizer_fingerprint, pairs.fingerprint())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def reference_sums(
    model: Transformer, pairs: EncodedPairs, config: DpoConfig, *, pad: int, ranks: DataRanks | None = None
) -> NDArray[np.float32]:
    """Runs the reference over all pairs, dealt out over the processes.

    Args:
        model: the reference.
        pairs: the data set.
        config: size of a batch.
        pad: token id of the padding.
        ranks: the other processes.

    Returns:
        `[pairs, 2]` log probabilities summed over the counted targets, chosen and rejected, in nats.
    """
    sums = np.zeros((len(pairs.answers), 2), dtype=np.float32)
    rows = best_fit_decreasing(pairs.lengths.tolist(), config.sequence_length)
    world, rank = (ranks.config.data_ranks, ranks.data_rank) if ranks else (1, 0)
    starts = range(0, len(rows), config.rows)
    with torch.no_grad(), console.progress("reference", total=len(pairs.answers), unit="pairs") as progress:
        for turn in range(
            0, len(starts), world
        ):  # all processes run a batch at each turn: shards are gathered together
            mine = min(turn + rank, len(starts) - 1)
            batch = pack_pairs(
                pairs,
                rows[starts[mine] : starts[mine] + config.rows],
                sequence_length=config.sequence_length,
                pad=pad,
                reference=None,
            )
            found = answer_sums(model, batch).contrast.cpu().numpy()
            if mine == turn + rank:
                sums[batch.pairs] = found
            progress.advance(batch.n_pairs * min(world, len(starts) - turn))
    return sums if ranks is None else ranks.add_up(torch.from_numpy(sums)).numpy()


def cached_reference(
    model: Transformer,
    pairs: EncodedPairs,
    config: DpoConfig,
    *,
    pad: int,
    model_fingerprint: str,
    tokenizer_fingerprint: str,
    folder: Path | str,
    ranks: DataRanks | None = None,
) -> NDArray[np.float32]:
    """The reference's sums, from the folder when it has them.

    Args:
        model: the reference; not run when the sums are there.
        pairs: the data set.
        config: size of a batch.
        pad: token id of the padding.
        model_fingerprint: content hash of the reference's checkpoint.
        tokenizer_fingerprint: content hash of the tokenizer.
        folder: where sums are kept; the same of all processes.
        ranks: the other processes of the run.

    Returns:
        `[pairs, 2]` log probabilities summed over the counted targets, chosen and rejected, in nats.
    """
    key = cache_key(pairs, model_fingerprint=model_fingerprint, tokenizer_fingerprint=tokenizer_fingerprint)
    path = Path(folder) / f"reference-{key[:16]}.sums"
    kept = _read(path, key, len(pairs.answers))
    if ranks is not None and int(ranks.add_up(torch.full((1,), float(kept is not None)))) < ranks.processes:
        kept = None  # not all processes have them
    if kept is not None:
        console.say(f"reference log probabilities of {len(pairs.answers)} pairs found in {path}")
        return kept
    sums = reference_sums(model, pairs, config, pad=pad, ranks=ranks)
    if ranks is not None and not ranks.speaks:
        return sums
    buffer = io.BytesIO()
    np.save(buffer, sums, allow_pickle=False)
    with atomic_open(path, "wb") as file:
        file.write(bytes.fromhex(key) + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    return sums


def _read(path: Path, key: str, n_pairs: int) -> NDArray[np.float32] | None:
    """The kept sums, or None when there are none, or others, or damaged ones. The file: key, checksum, array."""
    if not path.exists():
        return None
    content = path.read_bytes()
    stored_key, checksum, array = content[:32], content[32:64], content[64:]
    if stored_key.hex() != key or hashlib.sha256(array).digest() != checksum:
        console.warn(f"{path} is damaged; the reference's log probabilities are computed again")
        return None
    sums = np.load(io.BytesIO(array), allow_pickle=False)
    assert sums.shape == (n_pairs, 2), f"{path} holds {sums.shape}"
    return sums
