"""A worker: a warm interpreter behind walls, which forks three processes for each program.

    worker     waits for jobs; its namespaces, network and root are its own since its start
      keeper   holds the clock: own mounts with an empty scratch folder in memory; kills; writes the result
        judge      first of its process numbers; runs the tests, compares, says what it found
          candidate  first of its own process numbers; runs the program

When the judge is killed the kernel ends all that was started below it. The tests reach the keeper after the candidate
was forked, so that they were never in its memory. The result channel is open in the keeper, the verdict's in the judge
alone.

    job:    u32 length, JSON (program, limits), then u32 length, JSON (tests)
    result: u32 length, JSON
"""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from puna.sandbox import kernel, plain, walls
from puna.sandbox.candidate import Candidate
from puna.sandbox.judge import Session, judge
from puna.sandbox.walls import Limits, Wall, Walls

_JOBS, _RESULTS = 0, 1
_READY = {"state": "ready"}
_JUDGE_SECONDS = 2
"""Processor seconds of the judge beyond those of the program."""
_WARM = (
    "abc",
    "array",
    "ast",
    "base64",
    "bisect",
    "calendar",
    "cmath",
    "collections",
    "collections.abc",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "pprint",
    "queue",
    "random",
    "re",
    "secrets",
    "socket",
    "statistics",
    "string",
    "struct",
    "sys",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "unittest",
)
"""Modules that programs and tests like to import: loaded once."""


def main(folder: str, without: Sequence[Wall] = ()) -> None:
    """Stand up the walls and run jobs until there are no more.

    Args:
        folder: An empty folder of this worker.
        without: Walls to leave out.
    """
    for name in _WARM:
        __import__(name)
    sys.path[:] = [path for path in sys.path if path.startswith((sys.base_prefix, sys.prefix))]
    walls.readable()  # looked up while everything can be seen
    try:
        stand = walls.raise_walls(folder, without)
    except OSError as error:
        plain.send(_RESULTS, {"state": "failed", "reason": str(error)})
        return
    child = os.fork()
    if child:
        os.close(_JOBS)
        os.close(_RESULTS)
        os.waitpid(child, 0)
        os._exit(0)
    kernel.die_with_parent()
    plain.send(_RESULTS, {**_READY, **vars(stand)})
    while True:
        try:
            job = plain.receive(_JOBS)
        except (EOFError, plain.NotPlainError):
            os._exit(0)
        keeper = os.fork()
        if keeper == 0:
            _guarded(lambda job=job: Keeper(stand, job, folder).work())
        if os.waitpid(keeper, 0)[1]:
            os._exit(1)  # the channel may be in the middle of a job: begin anew


def _guarded(work: Any) -> None:
    """Run the body of a forked process; it never returns."""
    status = 1
    try:
        work()
        status = 0
    except Exception as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


@dataclass
class _Ends:
    """Pipes of one job, by who reads and who writes."""

    requests: tuple[int, int]
    answers: tuple[int, int]
    tests: tuple[int, int]
    verdict: tuple[int, int]
    printed: tuple[int, int]

    @classmethod
    def open(cls) -> "_Ends":
        return cls(os.pipe(), os.pipe(), os.pipe(), os.pipe(), os.pipe())


class Keeper:
    """One program, from its fork to its result.

    Args:
        stand: The worker's walls.
        job: Program and limits.
        folder: The worker's folder.
    """

    def __init__(self, stand: Walls, job: dict[str, Any], folder: str) -> None:
        self._walls, self._job = stand, job
        self._limits = Limits(**job["limits"])
        self._folder = folder
        self._output = bytearray()

    def work(self) -> None:
        """Run it and write the result."""
        scratch = self._scratch()
        os.chdir(scratch)
        if "pid" in self._walls.namespaces:
            kernel.unshare("pid")
        ends = _Ends.open()
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            _guarded(lambda: self._be_judge(ends, scratch))
        for mine in (*ends.requests, *ends.answers, ends.tests[0], ends.verdict[1], ends.printed[1]):
            os.close(mine)
        tests = plain.HEAD.unpack(head := plain.read_exactly(_JOBS, plain.HEAD.size))[0]
        data = head + plain.read_exactly(_JOBS, tests)
        said, late = self._watch(ends, data, begin + self._job["wall_seconds"])
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - begin
        os.chdir("/")
        if not self._walls.own_root:
            shutil.rmtree(scratch, ignore_errors=True)
        result = self._result(said, late, status, usage)
        result |= {"output": self._output.decode("utf-8", "replace"), "seconds": seconds}
        plain.send(_RESULTS, result)

    def _scratch(self) -> str:
        if not self._walls.own_root:
            scratch = tempfile.mkdtemp(dir=self._folder)
            if os.geteuid() == 0 and self._walls.user:
                os.chown(scratch, walls.NOBODY, walls.NOBODY)
            return scratch
        kernel.unshare("mount")
        options = f"size={self._limits.file_mib}m,nr_inodes=4096,mode=777"
        kernel.mount("none", walls.SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
        return walls.SCRATCH

    def _watch(self, ends: _Ends, tests: bytes, deadline: float) -> tuple[bytes, bool]:
        """Hand over the tests, take the first of the output, wait for the verdict.

        Returns:
            What the judge said, and whether time ran out.
        """
        said = bytearray()
        rest = memoryview(tests)
        readers, writers = [ends.verdict[0], ends.printed[0]], [ends.tests[1]]
        os.set_blocking(ends.tests[1], False)
        while ends.verdict[0] in readers:
            left = deadline - time.monotonic()
            can_read, can_write, _ = select.select(readers, writers, (), max(0.0, left))
            if left <= 0:
                return bytes(said), True
            if can_write:
                try:
                    rest = rest[os.write(ends.tests[1], rest) :]
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    os.close(ends.tests[1])
                    writers = []
            for descriptor in can_read:
                block = os.read(descriptor, 1 << 16)
                if not block:
                    readers.remove(descriptor)
                elif descriptor == ends.verdict[0]:
                    said += block[: 4096 - len(said)]
                else:
                    self._output += block[: self._job["output_bytes"] - len(self._output)]
        while ends.printed[0] in readers and select.select([ends.printed[0]], (), (), 0)[0]:
            block = os.read(ends.printed[0], 1 << 16)
            if not block or len(self._output) >= self._job["output_bytes"]:
                break
            self._output += block[: self._job["output_bytes"] - len(self._output)]
        return bytes(said), False

    def _result(self, said: bytes, late: bool, status: int, usage: resource.struct_rusage) -> dict[str, str]:
        if late:
            return {"outcome": "timeout", "reason": f"longer than {self._job['wall_seconds']:g} s"}
        if said:
            return json.loads(said)
        spent = usage.ru_utime + usage.ru_stime
        if spent >= self._limits.cpu_seconds / 2:
            return {"outcome": "timeout", "reason": "the tests themselves took too long"}
        return {"outcome": "crashed", "reason": "the tests ended before their verdict"}

    def _be_judge(self, ends: _Ends, scratch: str) -> None:
        if "pid" in self._walls.namespaces:
            kernel.unshare("pid")
        candidate = os.fork()
        if candidate == 0:
            _guarded(lambda: self._be_candidate(ends, scratch))
        os.setpgid(0, 0)
        os.dup2(os.open("/dev/null", os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(0, 2)
        kernel.close_all_but((ends.requests[1], ends.answers[0], ends.tests[0], ends.verdict[1]))
        own = Limits(
            self._limits.cpu_seconds + _JUDGE_SECONDS, max(512, self._limits.memory_mib), self._limits.file_mib, 0
        )
        walls.confine(self._walls, own, scratch)
        session = Session(ends.requests[1], ends.answers[0])
        tests = plain.receive(ends.tests[0])
        found = judge(session, tests, lambda: self._ended(candidate))
        os.write(ends.verdict[1], json.dumps(found).encode())

    def _ended(self, candidate: int) -> tuple[str, str]:
        """Why a candidate is gone."""
        _, status, usage = os.wait4(candidate, 0)
        spent = usage.ru_utime + usage.ru_stime
        if os.WIFEXITED(status):
            return "crashed", f"the program ended by itself (status {os.WEXITSTATUS(status)}) before its tests did"
        number = os.WTERMSIG(status)
        if number in (signal.SIGKILL, signal.SIGXCPU):
            if spent >= self._limits.cpu_seconds / 2:  # the limit counts time that a virtual machine was not given
                return "timeout", f"more than {self._limits.cpu_seconds} s of processor time"
            return "memory", "killed by the kernel, most likely out of memory"
        return "crashed", f"the program died of {signal.Signals(number).name}"

    def _be_candidate(self, ends: _Ends, scratch: str) -> None:
        os.setpgid(0, 0)  # signals to a group pass the borders of namespaces
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(ends.printed[1], 1)
        os.dup2(ends.printed[1], 2)
        kernel.close_all_but((ends.requests[0], ends.answers[1]))
        walls.confine(self._walls, self._limits, scratch)
        os.environ.clear()
        source, as_script = self._job.pop("source"), self._job["as_script"]
        Candidate(ends.requests[0], ends.answers[1]).serve(source, as_script=as_script)
