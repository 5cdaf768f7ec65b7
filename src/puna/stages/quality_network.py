"""The transformer classifier: our own model, our own loop, read out as log-odds. See `data/quality/batches.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from puna.checkpoint.format import load_model, load_tokenizer
from puna.core.run_folder import RunFolder
from puna.data.quality.batches import LabelBatches, class_tokens, encode
from puna.data.quality.calibrate import Calibration
from puna.data.quality.store import read_card
from puna.model.init import init_weights
from puna.model.layout import DocumentLayout
from puna.model.transformer import Transformer
from puna.stages.training import check_context
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.train import train_bpe
from puna.train.loop import train
from puna.train.loss import next_token_loss

_TOKENS_AT_ONCE = 4096


class NetworkClassifier:
    """A trained transformer that scores texts.

    Args:
        model: From the training loop.
        tokenizer: Its tokenizer.
        max_tokens: Tokens of a text that are looked at.
        calibration: Log-odds to probability.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, max_tokens: int, calibration: Calibration | None = None
    ) -> None:
        self._model, self._tokenizer, self._max_tokens = model.eval(), tokenizer, max_tokens
        self.calibration = calibration or Calibration()

    def calibrated(self, calibration: Calibration) -> "NetworkClassifier":
        """The same with another calibration."""
        return NetworkClassifier(self._model, self._tokenizer, max_tokens=self._max_tokens, calibration=calibration)

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The mean over the later half of each text's places."""
        pieces = encode(texts, self._tokenizer, max_tokens=self._max_tokens)
        found = np.zeros(len(pieces))
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        begin = 0
        while begin < len(order):
            end, total = begin, 0
            while end < len(order) and (end == begin or total + len(pieces[order[end]]) <= _TOKENS_AT_ONCE):
                total += len(pieces[order[end]])
                end += 1
            chosen = order[begin:end]
            found[chosen] = self._batch([pieces[i] for i in chosen])
            begin = end
        return found

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Calibrated probability of each text."""
        return self.calibration(self.log_odds(texts))

    @torch.no_grad()
    def _batch(self, pieces: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        lengths = [len(piece) for piece in pieces]
        device = self._model.device
        tokens = torch.from_numpy(np.concatenate(pieces)).to(device)
        hidden_TD = self._model.hidden(tokens, DocumentLayout(lengths, device=device))
        negative, positive = class_tokens(self._tokenizer)
        direction_D = self._model.head_weight[positive] - self._model.head_weight[negative]
        odds = (hidden_TD @ direction_D).float().cpu().numpy().astype(np.float64)
        ends = np.cumsum(lengths)
        return np.array([odds[end - (length + 1) // 2 : end].mean() for end, length in zip(ends, lengths, strict=True)])


def open_network(folder: Path) -> NetworkClassifier:
    """The transformer classifier in a folder; what the `opener` of a step names."""
    card = read_card(folder)
    model, _ = load_model(folder / "model", dtype=torch.float32)
    tokenizer = load_tokenizer(folder / "model")
    return NetworkClassifier(
        model, tokenizer, max_tokens=int(card["max_tokens"]), calibration=Calibration(**card["calibration"])
    )


def train_network(texts: Sequence[str], labels: NDArray[np.bool_], config: Any, folder: RunFolder) -> NetworkClassifier:
    """Train a classifier with the one training loop; killed and called again, it goes on.

    Args:
        texts: What to learn from.
        labels: Whether each is positive.
        config: The `network` table of the recipe.
        folder: Gets checkpoints and, at the end, `model/`.
    """
    if config.start_from is not None:
        model, shape = load_model(config.start_from, dtype=torch.float32)
        tokenizer = load_tokenizer(config.start_from)
    else:
        tokenizer = train_bpe(texts, vocab_size=config.vocab_size)
        shape = config.model.resolve(vocab_size=tokenizer.vocab_size)
        model = init_weights(Transformer(shape), config.model.init_seed)
    check_context(shape, config.sequence_length)
    batches = LabelBatches(
        texts, labels, tokenizer, rows=config.rows, sequence_length=config.sequence_length, seed=config.train.steps
    )
    train(model, loss=next_token_loss, batches=batches, config=config.train, run=folder, tokenizer=tokenizer)
    return NetworkClassifier(model, tokenizer, max_tokens=config.sequence_length)
