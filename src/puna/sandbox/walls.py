"""The walls around a program, and which of them this machine has.

    files      an own root that holds the standard library and a scratch folder in memory; Landlock
    network    an own, empty network; no system call makes a socket
    processes  own process numbers, which end together; no fork, no signals
    calls      the filter of system calls

Each of the first three has two independent walls where the machine allows it, one at least where programs are run at
all. `raise_walls` makes those of a worker, `confine` those of one process in it.
"""

import contextlib
import functools
import os
import resource
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from puna.sandbox import kernel, landlock, seccomp

Wall = Literal["namespaces", "landlock", "filter"]
NOBODY = 65534
SCRATCH = "/scratch"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Walls:
    """What stands.

    Attributes:
        namespaces: Kinds of namespaces that the worker has for itself.
        own_root: Whether programs see a root of their own instead of the machine's.
        landlock: Version of Landlock, 0 for none.
        filter: Whether system calls are filtered.
        user: Whether programs run as a user other than root.
    """

    namespaces: tuple[str, ...]
    own_root: bool
    landlock: int
    filter: bool
    user: bool

    def lacking(self) -> list[str]:
        """What nothing protects, in words."""
        missing = []
        if not (self.own_root or self.landlock):
            missing.append("files (no namespaces for mounts, no Landlock)")
        if not ("net" in self.namespaces or self.filter):
            missing.append("network (no namespace, no filter of system calls)")
        if not ("pid" in self.namespaces or self.filter):
            missing.append("processes (no namespace, no filter of system calls)")
        if not self.user:
            missing.append("the user (programs would run as root)")
        return missing


@functools.cache
def readable() -> tuple[str, ...]:
    """Folders that a program may read: those of the standard library and of shared libraries."""
    paths = sysconfig.get_paths()
    wanted = [paths["stdlib"], paths["platstdlib"], "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    wanted += ["/usr/share/zoneinfo"]
    wanted += [base for base in (f"{sys.base_prefix}/lib",) if sys.base_prefix not in ("/", "/usr", "/usr/local")]
    real = sorted({os.path.realpath(path) for path in wanted if os.path.isdir(path)})  # noqa: PTH112
    return tuple(path for path in real if not any(path.startswith(other + "/") for other in real))


def raise_walls(folder: str, without: Sequence[Wall] = ()) -> Walls:
    """Give this process namespaces and a root of its own, as far as the machine allows.

    The caller forks afterwards: its child is the first process of the new ones.

    Args:
        folder: An empty folder that the new root may be built on.
        without: Walls to leave out.
    """
    namespaces, root = [], os.geteuid() == 0
    spaces = "namespaces" not in without
    if spaces and _own_users():
        namespaces.append("user")
    user = not root or _can_become_nobody()
    for kind in ("mount", "net", "ipc", "uts", "pid"):
        if spaces and ("user" in namespaces or root):
            with contextlib.suppress(OSError):
                kernel.unshare(kind)
                namespaces.append(kind)
    own_root = False
    if "mount" in namespaces:
        with contextlib.suppress(OSError):
            _build_root(folder)
            own_root = True
    locks = 0 if "landlock" in without else landlock.version()
    return Walls(tuple(namespaces), own_root, locks, "filter" not in without and seccomp.supported(), user)


def _own_users() -> bool:
    """A namespace of users in which this process is root; as root of the machine `nobody` is there too."""
    user, group, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    ready, go = os.pipe()
    mapped, told = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:  # stays outside and writes who is who
        status = 1
        try:
            os.close(go)
            if os.read(ready, 1):
                more = f"\n{NOBODY} {NOBODY} 1" if root else ""
                _write(f"/proc/{parent}/setgroups", "allow" if root else "deny")
                _write(f"/proc/{parent}/uid_map", f"0 {user} 1{more}")
                _write(f"/proc/{parent}/gid_map", f"0 {group} 1{more}")
                status = 0
        finally:
            os._exit(status)
    os.close(ready)
    os.close(mapped)
    os.close(told)
    try:
        kernel.unshare("user")
        os.write(go, b"x")
        made = True
    except OSError:
        made = False
    os.close(go)
    return os.waitpid(helper, 0)[1] == 0 and made


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _can_become_nobody() -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if _become_nobody() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _become_nobody() -> bool:
    try:
        kernel.become(NOBODY)
    except OSError:
        return False
    return True


def _build_root(folder: str) -> None:
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path in (*readable(), *_DEVICES):
        inside = folder + path
        if os.path.isdir(path):  # noqa: PTH112
            os.makedirs(inside, exist_ok=True)  # noqa: PTH103
        elif os.path.exists(path):  # noqa: PTH110
            os.makedirs(os.path.dirname(inside), exist_ok=True)  # noqa: PTH103, PTH120
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o600))
        else:
            continue
        kernel.bind_read_only(path, inside)
    for link in ("lib", "lib64"):
        if os.path.islink("/" + link):  # noqa: PTH114
            os.symlink(os.readlink("/" + link), f"{folder}/{link}")  # noqa: PTH115, PTH211
    os.mkdir(folder + SCRATCH, 0o755)  # noqa: PTH102
    kernel.change_root(folder)
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, flags)


@dataclass(frozen=True)
class Limits:
    """What one process may use.

    Attributes:
        cpu_seconds: Processor time.
        memory_mib: Address space.
        file_mib: Largest file.
        processes: Processes that it may start; 0 also forbids exec.
    """

    cpu_seconds: int
    memory_mib: int
    file_mib: int
    processes: int


def confine(walls: Walls, limits: Limits, scratch: str) -> None:
    """Put the inner walls around this very process; there is no way back.

    Args:
        walls: What `raise_walls` gave.
        limits: What it may use.
        scratch: Where it may write.
    """
    mib = 1 << 20
    wanted = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory_mib * mib,
        resource.RLIMIT_FSIZE: limits.file_mib * mib,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if "user" in walls.namespaces:  # elsewhere it would count all processes of the user
        wanted[resource.RLIMIT_NPROC] = limits.processes + 64
    if not (os.geteuid() == 0 and _become_nobody()):
        kernel.drop_capabilities()
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    kernel.no_new_privileges()
    kernel.hide_memory()
    kernel.die_with_parent()  # after the change of user, which would clear it
    if walls.landlock:
        landlock.restrict(read=(*readable(), *_DEVICES), write=(scratch,))
    if walls.filter:
        seccomp.install(processes=limits.processes > 0)
