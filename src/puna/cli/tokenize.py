"""`puna tokenize`: train a tokenizer, pack shards, compare tokenizers, look at the tokens of a text."""

import click

from puna.cli.stage_verb import HELP, examples, stage_command


@click.group(
    "tokenize",
    context_settings=HELP,
    epilog=examples(
        "puna tokenize train demo/tokenizer",
        "puna tokenize pack demo/shards",
        "puna tokenize text runs/demo/tokenizer 'Hello, world'",
        "puna tokenize report runs/demo/tokenizer --text README.md",
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
