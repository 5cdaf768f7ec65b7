"""Vectors from a checkpoint: the mean of its last hidden states, for semantic deduplication.

SemDeDup used a language model of 125M parameters; any checkpoint serves, and one trained on like text serves best.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from puna.checkpoint.format import load_model, load_tokenizer
from puna.data.quality.batches import encode
from puna.model.layout import DocumentLayout
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

_TOKENS_AT_ONCE = 4096


class CheckpointEmbedder:
    """Mean hidden states.

    Args:
        model: The transformer.
        tokenizer: Its tokenizer.
        max_tokens: Tokens of a text that are looked at.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        self._model, self._tokenizer, self._max_tokens = model.eval(), tokenizer, max_tokens

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[texts, D]`."""
        pieces = encode(texts, self._tokenizer, max_tokens=self._max_tokens)
        rows: list[NDArray[np.float32]] = []
        while len(rows) < len(pieces):
            end, total = len(rows), 0
            while end < len(pieces) and (end == len(rows) or total + len(pieces[end]) <= _TOKENS_AT_ONCE):
                total += len(pieces[end])
                end += 1
            few = pieces[len(rows) : end]
            tokens = torch.from_numpy(np.concatenate(few)).to(self._model.device)
            layout = DocumentLayout([len(piece) for piece in few], device=self._model.device)
            hidden_TD = self._model.hidden(tokens, layout).float().cpu().numpy()
            starts = np.cumsum([0, *(len(piece) for piece in few)])
            rows += [hidden_TD[a:b].mean(axis=0) for a, b in pairwise(starts)]
        return np.asarray(rows, dtype=np.float32).reshape(len(pieces), -1)


def open_checkpoint(folder: Path) -> CheckpointEmbedder:
    """The embedder of a checkpoint's folder; what the `opener` of a step names."""
    model, config = load_model(folder, dtype=torch.float32)
    return CheckpointEmbedder(model, load_tokenizer(folder), max_tokens=min(512, config.max_seq_len))
