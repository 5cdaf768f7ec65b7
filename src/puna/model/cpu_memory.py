"""Keep freed memory for the next step: a training process on a CPU asks the operating system for its pages once.

By default glibc gives every large tensor back to the system when it is freed and takes fresh pages for the next one;
the kernel must clear each page at its first touch, at about 2 GB/s where memory itself reads at 20. A training step
frees and takes the same sizes again and again, so we tell malloc to serve large blocks from its heap and never to
shrink it. The process then holds its peak until it ends. Nothing but speed changes, and only a process that trains
calls this.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_ALWAYS_FROM_THE_HEAP, _NEVER_SHRINK = 2**30, 2**31 - 1  # bytes: the largest that mallopt's int takes, and 1 GiB


def keep_freed_memory() -> str | None:
    """Set glibc's malloc to keep freed memory in this process.

    Returns:
        What was done, for the log; None where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return None
    done = mallopt(_M_MMAP_THRESHOLD, _ALWAYS_FROM_THE_HEAP) and mallopt(_M_TRIM_THRESHOLD, _NEVER_SHRINK)
    return "memory: malloc keeps what is freed (fresh pages are slow)" if done else None
