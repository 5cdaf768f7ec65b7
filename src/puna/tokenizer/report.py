"""How well a tokenizer fits: characters and bytes per token, by language and domain, beside any other tokenizer.

Both figures are over the same texts, without a begin-of-text token. Characters per token reads naturally for one
language; bytes per token compares languages whose characters take one to four bytes; `tokens_ratio` says how many
tokens this tokenizer needs for one of ours, so above 1 it is worse than ours.

The other tokenizer is whatever file the user has: a tiktoken ranks file, a `tokenizer.json` of any kind (with the
`tokenizers` package), or a SentencePiece `.model` (extra `sentencepiece`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.core.errors import CorruptError, MissingError, UsageError, need
from puna.tokenizer.bpe import JSON_FILE, Tokenizer
from puna.tokenizer.ranks import is_ranks_file

ALL = "all"


@dataclass(frozen=True, slots=True)
class Sample:
    """A text to measure on, and where it belongs."""

    text: str
    language: str
    domain: str


@dataclass(frozen=True, slots=True)
class Counter:
    """A tokenizer reduced to what the report needs.

    Attributes:
        name: How the report calls it.
        vocab_size: Number of ids.
        count: Tokens of a text, without special tokens.
    """

    name: str
    vocab_size: int
    count: Callable[[str], int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, name: str) -> "Counter":
        """A tokenizer of ours."""
        return cls(name, tokenizer.vocab_size, lambda text: len(tokenizer.encode_array(text)))


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenizer on one language and domain; `"all"` sums over them."""

    tokenizer: str
    language: str
    domain: str
    documents: int
    characters: int
    bytes: int
    tokens: int
    tokens_ratio: float

    @property
    def characters_per_token(self) -> float:
        """Unicode characters for one token."""
        return self.characters / max(self.tokens, 1)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes for one token."""
        return self.bytes / max(self.tokens, 1)


def open_counter(path: Path | str, *, name: str | None = None) -> Counter:
    """Open any tokenizer file or folder for comparison.

    Args:
        path: Ranks file, `tokenizer.json`, folder with one, or SentencePiece `.model`.
        name: How the report calls it; the path as given when None.

    Raises:
        MissingError: Nothing is there, or an optional package is missing (the message has the pip line).
        CorruptError: The file cannot be read as any of these.
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(f"{path} is not there")
    file = path
    if path.is_dir():
        found = [path / each for each in (JSON_FILE, "tokenizer.model") if (path / each).is_file()]
        if not found:
            raise MissingError(f"{path} holds no tokenizer: neither {JSON_FILE} nor tokenizer.model")
        file = found[0]
    name = name or str(path)
    if file.suffix == ".json":
        return _open_json(file, name)
    if is_ranks_file(file):
        return Counter.of(Tokenizer.load(file), name=name)
    return _open_sentencepiece(file, name)


def compare(ours: Counter, others: Sequence[Counter], samples: Iterable[Sample]) -> list[Row]:
    """Measure tokenizers on the same texts.

    Args:
        ours: The tokenizer that `tokens_ratio` refers to.
        others: Those to set beside it.
        samples: Texts with language and domain; read once.

    Returns:
        For every language and domain, sorted, and then for all together, one row a tokenizer, ours first.

    Raises:
        MissingError: There was no text.
    """
    counters = [ours, *others]
    groups: dict[tuple[str, str], list[int]] = {}
    for sample in samples:
        sizes = [1, len(sample.text), len(sample.text.encode("utf-8", "replace"))]
        counts = sizes + [counter.count(sample.text) for counter in counters]
        sums = groups.setdefault((sample.language, sample.domain), [0] * len(counts))
        groups[sample.language, sample.domain] = [a + b for a, b in zip(sums, counts, strict=True)]
    if not groups:
        raise MissingError("there is no text to compare tokenizers on")
    total = [sum(column) for column in zip(*groups.values(), strict=True)]
    rows = []
    for (language, domain), sums in [*sorted(groups.items()), ((ALL, ALL), total)]:
        n_documents, characters, n_bytes, *tokens = sums
        rows += [
            Row(counter.name, language, domain, n_documents, characters, n_bytes, n, n / max(tokens[0], 1))
            for counter, n in zip(counters, tokens, strict=True)
        ]
    return rows


def _open_json(file: Path, name: str) -> Counter:
    try:
        return Counter.of(Tokenizer.load(file), name=name)
    except (UsageError, CorruptError):
        pass  # a tokenizer of another kind: its own library counts
    tokenizers = need("tokenizers", extra="dev")
    try:
        other = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CorruptError(f"{file} is not a tokenizer.json: {error}") from error
    return Counter(name, other.get_vocab_size(), lambda text: len(other.encode(text, add_special_tokens=False).ids))


def _open_sentencepiece(file: Path, name: str) -> Counter:
    sentencepiece = need("sentencepiece", extra="sentencepiece")
    try:
        other = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise CorruptError(f"{file} is neither a tiktoken ranks file nor a SentencePiece model: {error}") from error
    return Counter(name, other.vocab_size(), lambda text: len(other.encode(text)))
