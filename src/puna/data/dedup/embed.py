"""Where the vectors of semantic deduplication come from.

`tfidf` needs nothing (`tfidf.py`). A folder with a model may be a model2vec model (a table of word vectors), a
sentence-transformers model, or whatever an *opener* opens: `stages` names the one that reads a Puna checkpoint, since
this room knows no torch. Nothing is downloaded.
"""

import functools
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.core.errors import MissingError, UsageError, need


class Embedder(Protocol):
    """Texts to vectors."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[texts, width]`; the same for a text whatever its neighbours are."""
        ...


@functools.lru_cache(maxsize=2)
def open_embedder(path: Path, opener: str) -> Embedder:
    """The embedder in a folder; opened once a process.

    Args:
        path: A model's folder.
        opener: `module:function` that opens what is neither model2vec nor sentence-transformers.

    Raises:
        MissingError: There is no model, or a package that it needs.
        UsageError: It is not known what kind of model it is.
    """
    if not path.is_dir():
        raise MissingError(f"{path} is not there; the step's model must be the folder of a model")
    if (path / "modules.json").is_file() and not _is_model2vec(path):
        return SentenceTransformer(path)
    if _is_model2vec(path):
        return Model2vec(path)
    if not opener:
        raise UsageError(f"{path} is no model2vec or sentence-transformers folder, and no opener is named for others")
    module, _, function = opener.partition(":")
    return getattr(importlib.import_module(module), function)(path)


def _is_model2vec(path: Path) -> bool:
    config = path / "config.json"
    if not (path / "tokenizer.json").is_file() or not (path / "model.safetensors").is_file() or not config.is_file():
        return False
    record = json.loads(config.read_text(encoding="utf-8"))
    return record.get("model_type") == "model2vec" or "normalize" in record


class Model2vec:
    """A model2vec folder: a document is the mean of its tokens' vectors. Needs `tokenizers`."""

    def __init__(self, path: Path) -> None:
        from safetensors.numpy import load_file

        self._tokenizer: Any = need("tokenizers", extra="embed").Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        tensors = load_file(path / "model.safetensors")
        self._table = tensors["embeddings"].astype(np.float32)
        weights, mapping = tensors.get("weights"), tensors.get("mapping")
        if mapping is not None:
            self._table = self._table[mapping]
        if weights is not None:
            self._table = self._table * weights.astype(np.float32)[:, None]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean vectors."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [self._table[e.ids].mean(axis=0) if e.ids else np.zeros(self._table.shape[1]) for e in encoded]
        return np.asarray(rows, dtype=np.float32)


class SentenceTransformer:
    """A sentence-transformers folder, read from disk only. Needs that package."""

    def __init__(self, path: Path) -> None:
        package: Any = need("sentence_transformers", extra="embed")
        self._model = package.SentenceTransformer(str(path), local_files_only=True, device="cpu")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The model's vectors."""
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32)
