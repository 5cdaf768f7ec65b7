"""The calls of Linux that a jail is made of, through ctypes: namespaces, mounts, prctl, capabilities.

Every function raises OSError with the kernel's number and the name of the call. Source: unshare(2), mount(2),
pivot_root(2), mount_setattr(2), prctl(2), capset(2).
"""

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Sequence

NEW_NAMESPACE = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}
"""Flag of unshare(2) for each kind."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_NUMBERS = {"x86_64": {"pivot_root": 155, "capset": 126}, "aarch64": {"pivot_root": 41, "capset": 91}}
_MOUNT_SETATTR = 442  # the same on all machines, as all calls since 424

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def machine() -> str:
    """Name of the processor family: `x86_64`, `aarch64`, ..."""
    return os.uname().machine


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by its number; integers are passed as longs."""
    assert _libc is not None, "system calls of Linux on another system"
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *converted), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(*kinds: str) -> None:
    """Leave the namespaces of the given kinds for new ones; new pid and child processes meet in `pid`."""
    assert _libc is not None, "namespaces on another system"
    flags = sum(NEW_NAMESPACE[kind] for kind in kinds)
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare {' '.join(kinds)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount, bind or remount."""
    assert _libc is not None, "mounts on another system"
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def bind_read_only(source: str, target: str) -> None:
    """Show a folder or file at another place, with all that is mounted below it, and let nobody write there."""
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, buffer, len(attributes))


def change_root(folder: str) -> None:
    """Make a mounted folder the root and let go of the old one."""
    assert _libc is not None, "a root on another system"
    os.chdir(folder)
    syscall(_NUMBERS[machine()]["pivot_root"], b".", b".")  # both at one place: the old root lies over the new one
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide_memory() -> None:
    """No other process of this user may look into this one."""
    _prctl(_PR_SET_DUMPABLE, 0)


def no_new_privileges() -> None:
    """Nothing that is executed from here on has more rights than this process."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last one, or without the right to drop: then the empty sets below are what holds
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    syscall(_NUMBERS[machine()]["capset"], header, ctypes.create_string_buffer(24))


def become(user: int) -> None:
    """Another user and group without any supplementary ones."""
    os.setgroups(())
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def close_all_but(keep: Sequence[int]) -> None:
    """Close every file of this process except the standard three and these."""
    at = 3
    for descriptor in sorted(keep):
        os.closerange(at, descriptor)
        at = descriptor + 1
    os.closerange(at, 1024)


def _prctl(option: int, value: int) -> None:
    assert _libc is not None, "prctl on another system"
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")
