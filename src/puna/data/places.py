r"""Local and remote files under one name: a path, or any address that fsspec opens (`s3://`, `https://`, `hf://`).

A file name need not be UTF-8. Python holds a stray byte as half a surrogate pair, which no JSON or Parquet file takes;
everywhere outside of the file system such a name is written as Python would escape it (`caf\udce9.jsonl`).
"""

import re
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from puna.core.errors import MissingError, need


def is_remote(place: Path | str) -> bool:
    """Whether it is an address, not a path."""
    return "://" in str(place)


def writable(name: str) -> str:
    """A file name as text that can be written anywhere; `join` finds the file again."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def join(root: Path | str, part: str) -> Path | str:
    """The place of a part under a root."""
    if not is_remote(root):
        root = Path(root)
        if root.is_file():
            return root
        place = root / part
        if "\\udc" in part and not place.exists():
            return root / re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), part)
        return place
    text = str(root).rstrip("/")
    return text if PurePosixPath(text).name == part else f"{text}/{part}"


def open_binary(place: Path | str) -> BinaryIO:
    """Open a file for reading; remote ones can be sought too.

    Raises:
        OSError: It cannot be opened.
        MissingError: fsspec is needed and not installed.
    """
    if not is_remote(place):
        return Path(place).open("rb")
    return cast("BinaryIO", need("fsspec", extra="data").open(str(place), "rb").open())


def find_remote(root: str, source: str) -> list[tuple[str, int]]:
    """Relative names and sizes of all files under an address, or of the file itself.

    Raises:
        MissingError: Nothing is there, or the address cannot be reached.
    """
    fsspec = need("fsspec", extra="data")
    try:
        system, path = fsspec.core.url_to_fs(root)
        if not system.isdir(path):
            return [(PurePosixPath(path).name, int(system.size(path) or 0))]
        found = system.find(path, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise MissingError(f"source {source!r}: {root} cannot be read: {error}") from error
    base = path.rstrip("/") + "/"
    return [(name.removeprefix(base), int(info.get("size") or 0)) for name, info in sorted(found.items())]
