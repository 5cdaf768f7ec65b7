"""Values between the judge and the candidate: data only, never an object with behaviour.

A candidate is a hostile process. What it sends is JSON that stands for None, bool, int, float, complex, str, bytes,
list, tuple, dict, set, frozenset and nothing else, so that an answer that claims to be equal to everything cannot
exist on the judge's side. A subclass is sent as the value that it holds. Anything else is sent as a handle: a number by
which the candidate finds its object again.

    5, "text", true, null, 0.5    themselves
    {"t": "list", "v": [...]}     containers and the numbers that JSON has no word for
    {"t": "handle", "v": 7}       an object that stays in the candidate

    message: u32 length, JSON
"""

import base64
import json
import math
import os
import struct
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct("<I")
MAX_MESSAGE = 8 << 20
"""Bytes; a longer one is refused by both sides."""
_SMALL = 1 << 53

Handle = Callable[[Any], int]
Find = Callable[[int], Any]


class NotPlainError(Exception):
    """A value that is no data, or too much of it."""


def encode(value: Any, handle: Handle | None = None) -> Any:
    """A value in JSON types.

    Args:
        value: What to send.
        handle: Keeps an object that is no data and gives its number; without it such a value is refused.

    Raises:
        NotPlainError: It is no data and `handle` is None, or it contains itself.
    """
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_SMALL < number < _SMALL else {"t": "int", "v": hex(number)}
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else {"t": "float", "v": repr(number)}
    if isinstance(value, str):
        return str.__str__(value)
    try:
        return _encode_container(value, handle)
    except RecursionError as error:
        raise NotPlainError("a value is nested too deeply or contains itself") from error


def _encode_container(value: Any, handle: Handle | None) -> Any:
    if isinstance(value, list):
        return {"t": "list", "v": [encode(item, handle) for item in list.__iter__(value)]}
    if isinstance(value, tuple):
        return {"t": "tuple", "v": [encode(item, handle) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[encode(k, handle), encode(v, handle)] for k, v in dict.items(value)]}
    if isinstance(value, set):
        return {"t": "set", "v": [encode(item, handle) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"t": "frozenset", "v": [encode(item, handle) for item in frozenset.__iter__(value)]}
    if isinstance(value, bytes):
        return {"t": "bytes", "v": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, complex):
        return {"t": "complex", "v": [repr(value.real), repr(value.imag)]}
    if handle is None:
        raise NotPlainError(f"{type(value).__name__} is not plain data")
    return {"t": "handle", "v": handle(value)}


def decode(node: Any, find: Find) -> Any:
    """The value that JSON types stand for.

    Args:
        node: What `encode` gave.
        find: The object, or its stand-in, of a handle's number.

    Raises:
        NotPlainError: It is nothing that `encode` gives.
    """
    if node is None or isinstance(node, bool | int | float | str):
        return node
    try:
        return _decode_tagged(node["t"], node["v"], find)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise NotPlainError("a message that stands for no value") from error


def _decode_tagged(tag: str, value: Any, find: Find) -> Any:
    match tag:
        case "list":
            return [decode(item, find) for item in value]
        case "tuple":
            return tuple([decode(item, find) for item in value])
        case "dict":
            return {decode(k, find): decode(v, find) for k, v in value}
        case "set":
            return {decode(item, find) for item in value}
        case "frozenset":
            return frozenset([decode(item, find) for item in value])
        case "int":
            return int(value, 16)
        case "float":
            return float(value)
        case "complex":
            return complex(float(value[0]), float(value[1]))
        case "bytes":
            return base64.b64decode(value)
        case "handle":
            return find(int(value))
    raise ValueError(tag)


def send(descriptor: int, message: Any) -> None:
    """Write one message.

    Raises:
        NotPlainError: It is too long.
        OSError: Nobody reads.
    """
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > MAX_MESSAGE:
        raise NotPlainError(f"a value of {len(data):,} bytes; {MAX_MESSAGE:,} are allowed")
    write_all(descriptor, HEAD.pack(len(data)) + data)


def receive(descriptor: int) -> Any:
    """Read one message.

    Raises:
        EOFError: The other side is gone.
        NotPlainError: It is too long or no JSON.
    """
    (length,) = HEAD.unpack(read_exactly(descriptor, HEAD.size))
    if length > MAX_MESSAGE:
        raise NotPlainError(f"a message of {length:,} bytes; {MAX_MESSAGE:,} are allowed")
    try:
        return json.loads(read_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise NotPlainError("a message that is no JSON") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_exactly(descriptor: int, length: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: There are fewer.
    """
    data = bytearray()
    while len(data) < length:
        block = os.read(descriptor, min(length - len(data), 1 << 20))
        if not block:
            raise EOFError
        data += block
    return bytes(data)
