"""Landlock: a process gives up all files but some, for itself and all that it starts, without any privilege.

Files that are open stay so. From its fourth version TCP is refused too, from its sixth signals to processes outside.
Source: landlock(7), linux/landlock.h.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

from puna.sandbox import kernel

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files each version knows; the rights are the lowest bits."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15


def version() -> int:
    """Version of the interface that the kernel offers; 0 where there is none."""
    try:
        return kernel.syscall(_CREATE, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def restrict(*, read: Sequence[str], write: Sequence[str]) -> None:
    """Keep these files and folders and give up every other one. `no_new_privileges` comes first.

    Args:
        read: Files and folders to read; those that do not exist are left out.
        write: Folders to write in.

    Raises:
        OSError: The kernel has no Landlock.
    """
    known = version()
    every = (1 << _RIGHTS_OF_VERSION.get(known, 16)) - 1
    attributes = struct.pack("=QQQ", every, 3 if known >= 4 else 0, 3 if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    rules = kernel.syscall(_CREATE, ctypes.create_string_buffer(attributes, 24), size, 0)
    try:
        for path in read:
            _allow(rules, path, (_EXECUTE | _READ_FILE | _READ_DIR) & every)
        for path in write:
            _allow(rules, path, every & ~_EXECUTE)
        kernel.syscall(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    if not os.path.exists(path):  # noqa: PTH110 - pathlib is slow to load where this runs
        return
    if not os.path.isdir(path):  # noqa: PTH112
        rights &= _OF_FILES
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
        kernel.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)
