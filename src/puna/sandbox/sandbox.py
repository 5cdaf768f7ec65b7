"""Runs programs: a pool of workers, each a warm interpreter behind walls (`worker.py`).

A worker is started when it is first needed and ends with the sandbox, or when this process ends. A worker that
does not answer in time, or breaks the protocol, is killed with all that it runs and replaced; its program is refused.
"""

import atexit
import contextlib
import functools
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from puna.core import console
from puna.core.errors import MissingError, PunaError
from puna.sandbox import plain
from puna.sandbox.program import FunctionTests, Program, SandboxConfig, Verdict
from puna.sandbox.walls import Wall, Walls

_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_BOOT = (
    "import sys; sys.path.insert(0, {source!r}); from puna.sandbox.worker import main; main({folder!r}, {without!r})"
)


class Sandbox:
    """A place to run programs in. Use it as a context manager; its methods may be called from several threads.

    Args:
        config: Limits, and how much protection there must be.
        without: Walls to leave out (`namespaces`, `landlock`, `filter`), to see what the others hold.

    Raises:
        MissingError: The system is not Linux, or the machine does not allow what `config.protection` wants.
    """

    def __init__(self, config: SandboxConfig | None = None, *, without: Sequence[Wall] = ()) -> None:
        self.config = config = config or SandboxConfig()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.n_workers = config.workers or cores
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(self.n_workers):
            self._idle.put(_Worker(config, tuple(without)))
        self._threads = ThreadPoolExecutor(self.n_workers, thread_name_prefix="sandbox")
        first = self._idle.get()
        self._idle.put(first)
        self.walls = first.start()
        atexit.register(self.close)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        atexit.unregister(self.close)
        self._threads.shutdown(cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()

    def run(self, program: Program) -> Verdict:
        """Run one program against its tests."""
        worker = self._idle.get()
        try:
            return worker.run(program)
        finally:
            self._idle.put(worker)

    def run_all(self, programs: Iterable[Program]) -> list[Verdict]:
        """Run several, as many at once as there are workers; verdicts in the order of the programs."""
        return list(self._threads.map(self.run, programs))

    def run_groups(self, groups: Iterable[Sequence[Program]], *, empty: Verdict) -> list[Verdict]:
        """Run groups side by side, each one after another: the first that is not passed is the group's verdict.

        Args:
            groups: The cases of each program.
            empty: The verdict of a group without any.
        """
        return list(self._threads.map(lambda group: self._run_group(group, empty), groups))

    def _run_group(self, group: Sequence[Program], verdict: Verdict) -> Verdict:
        for number, case in enumerate(group, start=1):
            verdict = self.run(case)
            if not verdict.correct and len(group) > 1:
                return replace(verdict, reason=f"case {number} of {len(group)}: {verdict.reason}")
        return verdict


def shared_sandbox(config: SandboxConfig) -> Sandbox:
    """One sandbox for all who want the same settings, until this process ends."""
    return _shared(config.model_dump_json())


@functools.cache
def _shared(config: str) -> Sandbox:
    return Sandbox(SandboxConfig.model_validate_json(config))


class _Worker:
    """One worker process, started when it is needed."""

    def __init__(self, config: SandboxConfig, without: tuple[Wall, ...]) -> None:
        self._config, self._without = config, without
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def start(self) -> Walls:
        """Start the process and see that its walls are enough.

        Raises:
            MissingError: They are not.
            PunaError: The worker does not start.
        """
        if sys.platform != "linux":
            raise MissingError(f"programs are run on Linux only, this is {sys.platform}; set exercises instead of code")
        self._folder = tempfile.mkdtemp(prefix="puna-sandbox-")
        Path(self._folder).chmod(0o711)
        source = str(Path(__file__).resolve().parents[2])
        boot = _BOOT.format(source=source, folder=self._folder, without=self._without)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        said = self._receive(_START_SECONDS)
        if said is None or said.pop("state", "") != "ready":
            self.stop()
            raise PunaError(f"the sandbox does not start: {(said or {}).get('reason', 'its process died')}")
        walls = Walls(**{**said, "namespaces": tuple(said["namespaces"])})
        lacking = walls.lacking()
        if lacking and self._config.protection == "full":
            self.stop()
            raise MissingError(
                f"this machine does not protect itself from programs: {'; '.join(lacking)}. `puna doctor` says what it "
                "allows. In a container, allow user namespaces or a kernel with Landlock (5.13 or later); or set "
                "sandbox.protection=available to run programs with what there is"
            )
        if lacking:
            console.warn(f"programs are run without protection of {'; '.join(lacking)}")
        return walls

    def run(self, program: Program) -> Verdict:
        """Run one program."""
        config, tests = self._config, program.tests
        if self._process is None:
            self.start()
        job = {
            "source": program.source,
            "as_script": not isinstance(tests, FunctionTests),
            "wall_seconds": config.wall_seconds,
            "output_bytes": config.output_kib << 10,
            "limits": {
                "cpu_seconds": config.cpu_seconds,
                "memory_mib": config.memory_mib,
                "file_mib": config.file_mib,
                "processes": config.processes,
            },
        }
        begin = time.monotonic()
        assert self._process is not None and self._process.stdin is not None
        try:
            for message in (job, asdict(tests)):
                plain.send(self._process.stdin.fileno(), message)
        except plain.NotPlainError as error:
            self.stop()
            return Verdict("refused", f"program or tests: {error}")
        except OSError:
            self.stop()
            return Verdict("refused", "the worker ended")
        said = self._receive(config.wall_seconds + _GRACE_SECONDS)
        if said is None:
            self.stop()
            return Verdict("refused", "the worker does not answer", seconds=time.monotonic() - begin)
        return Verdict(**said)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        handle = self._process.stdout.fileno()
        if not select.select([handle], (), (), seconds)[0]:
            return None
        try:
            return plain.receive(handle)
        except (EOFError, plain.NotPlainError):
            return None

    def stop(self) -> None:
        """Kill the process with all that it runs."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""
