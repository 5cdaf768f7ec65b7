"""A filter of system calls: what a program that computes never needs is refused by the kernel.

Refused with EPERM: sockets, tracing and signalling other processes, namespaces and mounts, keys, kernel modules, shared
memory outside the memory limit, devices; and, unless processes are allowed, fork and exec. A thread may be
started. Every call that is newer than this file is unknown (ENOSYS) but for a handful, so a later kernel opens no door.

The filter is a program for the kernel's packet-filter machine, built here by hand: the calls are numbers of x86_64 and
aarch64. Source: seccomp(2), linux/bpf_common.h.
"""

import ctypes
import errno
import struct

from puna.sandbox import kernel

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

REFUSED = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308, "unshare": 272,
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_setup": 206,
        "add_key": 248, "request_key": 249, "keyctl": 250,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
        "reboot": 169, "swapon": 167, "swapoff": 168, "quotactl": 179, "acct": 163, "syslog": 103, "vhangup": 153,
        "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "personality": 135,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "lookup_dcookie": 212, "fanotify_init": 300,
        "move_pages": 279, "mbind": 237, "migrate_pages": 256, "set_mempolicy": 238, "mknod": 133, "mknodat": 259,
        "memfd_create": 319, "shmget": 29, "shmat": 30, "shmctl": 31, "msgget": 68, "semget": 64, "mq_open": 240,
        "uselib": 134, "ustat": 136, "sysfs": 139,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97,
        "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_setup": 0,
        "add_key": 217, "request_key": 218, "keyctl": 219,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294,
        "reboot": 142, "swapon": 224, "swapoff": 225, "quotactl": 60, "acct": 89, "syslog": 116, "vhangup": 58,
        "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266,
        "sethostname": 161, "setdomainname": 162, "personality": 92,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "lookup_dcookie": 18, "fanotify_init": 262,
        "move_pages": 239, "mbind": 235, "migrate_pages": 238, "set_mempolicy": 237, "mknodat": 33,
        "memfd_create": 279, "shmget": 194, "shmat": 196, "shmctl": 195, "msgget": 186, "semget": 190, "mq_open": 180,
    },
}  # fmt: skip
"""Calls that always fail, by machine."""

STARTS = {
    "x86_64": {"fork": 57, "vfork": 58, "execve": 59, "execveat": 322},
    "aarch64": {"execve": 221, "execveat": 281},
}
"""Calls that start something; refused where a program may have no processes."""

NEW_ALLOWED = {"close_range": 436, "openat2": 437, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449}
"""What is allowed of the calls since 424, which have the same numbers everywhere."""

_CLONE, _PRCTL = {"x86_64": 56, "aarch64": 220}, {"x86_64": 157, "aarch64": 167}
_KILLS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_FIRST_NEW = 424
_X32 = 0x40000000
_CLONE_THREAD = 0x10000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _MODE_FILTER = 1, 22, 2

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low word of the argument


def _error(number: int) -> int:
    return 0x00050000 | number


def program(machine: str, *, processes: bool) -> bytes:
    """The filter as the kernel reads it.

    Args:
        machine: `x86_64` or `aarch64`.
        processes: Whether fork, exec and signals (in the program's own pid namespace) are allowed.
    """
    lines: list[tuple[int, int, int, int]] = []

    def refuse(test: int, value: int, answer: int) -> None:
        lines.extend([(test, 0, 1, value), (_RETURN, 0, 0, answer)])

    lines += [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)]
    lines.append((_LOAD, 0, 0, _NUMBER))
    if machine == "x86_64":
        refuse(_AT_LEAST, _X32, _error(errno.EPERM))
    for number in NEW_ALLOWED.values():
        refuse(_EQUAL, number, _ALLOW)
    refuse(_AT_LEAST, _FIRST_NEW, _error(errno.ENOSYS))
    refused = REFUSED[machine] if processes else REFUSED[machine] | STARTS[machine]
    for name, number in refused.items():
        if not (processes and name in _KILLS):
            refuse(_EQUAL, number, _error(errno.EPERM))
    # prctl: nobody unties itself from its parent's death
    lines += [(_EQUAL, 0, 4, _PRCTL[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    refuse(_EQUAL, _PR_SET_PDEATHSIG, _error(errno.EPERM))
    lines.append((_RETURN, 0, 0, _ALLOW))
    if not processes:  # clone: threads only
        lines += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_AND, 0, 0, _CLONE_THREAD)]
        refuse(_EQUAL, 0, _error(errno.EPERM))
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def supported() -> bool:
    """Whether this file knows the machine's calls."""
    return kernel.machine() in REFUSED


def install(*, processes: bool) -> None:
    """Filter this process and all that it starts, for good. `no_new_privileges` comes first."""
    code = program(kernel.machine(), processes=processes)
    instructions = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    number = _PRCTL[kernel.machine()]
    kernel.syscall(number, _PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(head, len(head)))
