"""`puna tokenize`: train a tokenizer, pack shards, compare tokenizers, look at the tokens of a text."""

from typing import Any

import click

from puna.cli.stage_verb import HELP, examples, stage_command


@click.group(
    "tokenize",
    context_settings=HELP,
    epilog=examples(
        "puna tokenize train demo/tokenizer",
        "puna tokenize pack demo/shards",
        "puna tokenize text runs/demo/tokenizer 'Hello, world'",
        "puna tokenize report runs/demo/tokenizer --corpus runs/demo/corpus",
    ),
)
def command() -> None:
    """Train a tokenizer, pack shards, compare tokenizers."""


command.add_command(
    stage_command(
        "tokenize train",
        """Train a byte-level BPE tokenizer on a corpus.

Llama 3's split pattern, any vocabulary up to 128K, and its 256 special tokens after it.
""",
        "puna tokenize train demo/tokenizer",
        "puna tokenize train demo/tokenizer vocab_size=4096 out=runs/trial/tokenizer",
    )
)
command.add_command(
    stage_command(
        "tokenize pack",
        """Write a corpus as shards of tokens.

Every document is stored between begin-of-text and end-of-text, with a manifest of where it came from.
""",
        "puna tokenize pack demo/shards",
        "puna tokenize pack demo/shards --dry-run",
    )
)


@command.command(
    "text",
    context_settings=HELP,
    epilog=examples(
        "puna tokenize text runs/demo/tokenizer 'Hello, world'",
        "puna tokenize text runs/demo/tokenizer --file README.md --ids",
        "echo Hello | puna tokenize text runs/demo/tokenizer",
    ),
)
@click.argument("tokenizer", type=click.Path())
@click.argument("text", required=False)
@click.option("--file", "path", type=click.Path(), help="Read the text from a UTF-8 file.")
@click.option("--ids", is_flag=True, help="Print the ids alone, on one line.")
def text_command(tokenizer: str, text: str | None, path: str | None, ids: bool) -> None:
    """Show the tokens of a text.

    The text is an argument, a file, or standard input. What looks like a special token in it is ordinary text.
    """
    from puna.core import console
    from puna.tokenizer.bpe import Tokenizer

    if text is not None and path is not None:
        raise click.UsageError("a text and --file were given: choose one")
    loaded = Tokenizer.load(tokenizer)
    content = text if text is not None else _read(path)
    tokens = loaded.encode(content)
    if ids:
        console.say(" ".join(map(str, tokens)))
        return
    rows = [(index, token, _shown(loaded.token_bytes(token))) for index, token in enumerate(tokens)]
    console.table("", ["#", "id", "piece"], rows)
    size = len(content.encode())
    console.say(f"{len(tokens)} tokens, {len(content)} characters, {size} bytes")


@command.command(
    "report",
    context_settings=HELP,
    epilog=examples(
        "puna tokenize report runs/demo/tokenizer --corpus runs/demo/corpus",
        "puna tokenize report runs/demo/tokenizer path/to/tokenizer.model --text en:prose=README.md",
    ),
)
@click.argument("ours", type=click.Path())
@click.argument("others", nargs=-1, type=click.Path())
@click.option("--corpus", type=click.Path(), help="Measure on a corpus, by its languages and domains.")
@click.option("--text", "texts", multiple=True, metavar="[LANGUAGE[:DOMAIN]=]FILE", help="Measure on a UTF-8 file too.")
@click.option(
    "--max-mib", default=8.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Of corpus."
)
def report_command(
    ours: str, others: tuple[str, ...], corpus: str | None, texts: tuple[str, ...], max_mib: float
) -> None:
    """Compare tokenizers by characters and bytes per token.

    By language and domain, over the same texts. The others may be tiktoken ranks, any tokenizer.json, or a
    SentencePiece model. The ratio is tokens needed for one of the first tokenizer's: above 1 is worse than it.
    """
    from puna.core import console
    from puna.tokenizer import report

    if corpus is None and not texts:
        raise click.UsageError("there is nothing to measure on: give --corpus or --text")
    counters = [report.open_counter(path) for path in (ours, *others)]
    samples = [*_labelled(texts), *_from_corpus(corpus, int(max_mib * 2**20))]
    rows = [
        [
            row.tokenizer,
            row.language or "?",
            row.domain or "?",
            row.documents,
            f"{row.characters_per_token:.3f}",
            f"{row.bytes_per_token:.3f}",
            f"{row.tokens_ratio:.3f}",
        ]
        for row in report.compare(counters[0], counters[1:], samples)
    ]
    columns = ["tokenizer", "language", "domain", "documents", "chars/token", "bytes/token", "ratio"]
    console.table("", columns, rows)


def _labelled(texts: tuple[str, ...]) -> list[Any]:
    from puna.tokenizer.report import Sample

    samples = []
    for given in texts:
        label, _, path = given.rpartition("=")
        language, _, domain = label.partition(":")
        samples.append(Sample(_read(path), language, domain))
    return samples


def _from_corpus(path: str | None, max_bytes: int) -> list[Any]:
    """Documents of every source in equal parts, up to `max_bytes` in all."""
    if path is None:
        return []
    from puna.data.corpus import Corpus
    from puna.tokenizer.report import Sample

    corpus = Corpus.open(path)
    samples = []
    for source in corpus.sources:
        left = max_bytes // len(corpus.sources)
        for document in corpus.documents([source]):
            if left <= 0:
                break
            samples.append(Sample(document.text, document.language, corpus.domain(source)))
            left -= document.n_bytes
    return samples


def _read(path: str | None) -> str:
    import sys
    from pathlib import Path

    from puna.core.errors import CorruptError, MissingError

    name = path or "standard input"
    try:
        data = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{name} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error


def _shown(piece: bytes) -> str:
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)
