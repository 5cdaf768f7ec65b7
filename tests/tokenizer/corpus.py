"""Real text for the tokenizer's tests: the shared test data where it is, and the interpreter's own library always."""

import gzip
import os
import re
import sysconfig
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

from puna.tokenizer.ranks import Ranks, read_ranks

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PUNA_TEST_DATA", ROOT.parent / "shared" / "data")) / "corpus"


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there; set PUNA_TEST_DATA to the folder with the test data")
    return path


@cache
def cl100k_ranks() -> Ranks:
    source = need(DATA / "tokenizer" / "cl100k.tiktoken.gz")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "cl100k.tiktoken"
        plain.write_bytes(gzip.decompress(source.read_bytes()))
        return read_ranks(plain)


@cache
def udhr_texts() -> list[str]:
    texts = _tar(need(DATA / "multilingual" / "udhr-xml-513.tar.gz"))
    return [re.sub(r"<[^>]+>", "", text) for text in texts]


@cache
def code_texts() -> list[str]:
    return _tar(need(DATA / "code" / "linguist-samples-subset.tar.gz"))


@cache
def stdlib_texts(n: int) -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:n]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _tar(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        return [file.read().decode("utf-8", "replace") for file in files if file is not None]


TRICKY = [
    "",
    " ",
    "a",
    "  \t\r\n\n  \u00a0\u2003x \u0085\u2028y",
    "I'm I'M it's IT'S we'Re you'LL 'ſ they'ſ",
    "1234567 3.14159 १२३४ ²³ Ⅷ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 ñ ﷽ ก็ नमस्ते 你好，世界 안녕하세요 שלום مرحبا",
    "def f(x):\n\treturn x  # done\r\n\r\n\n    pass!!!\n\n",
    "<|begin_of_text|><|eot_id|><|start_header_id|>system<|end_header_id|>\n\n",
    "\x00\x01\x1c\x1d\x7f\ufeff\ufffd\U0010ffff",
    "half \ud83d and \udc00 surrogates",
]
