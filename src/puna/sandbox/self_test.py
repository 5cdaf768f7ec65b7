"""Attacks on this machine's own walls, harmless where they get through: what `puna doctor` tells."""

import os
import socket
import tempfile
from pathlib import Path

from puna.core.errors import PunaError
from puna.sandbox.program import FunctionTests, Program, SandboxConfig
from puna.sandbox.sandbox import Sandbox

_REFUSED = "(PermissionError, FileNotFoundError, ProcessLookupError, BlockingIOError, OSError)"


def self_test() -> list[tuple[str, str]]:
    """Run the attacks.

    Returns:
        Rows of what and how it stands: the walls, and each attack that got through by name.
    """
    config = SandboxConfig(workers=1, cpu_seconds=2, wall_seconds=10, protection="available")
    try:
        with Sandbox(config) as box:
            walls = box.walls
            through = [name for name, code in _attacks().items() if not _refused(box, code)]
            works = box.run(Program("def f():\n    return 1", FunctionTests("assert f() == 1"))).correct
    except PunaError as error:
        return [("sandbox", f"none: {error}")]
    spaces = ", ".join(walls.namespaces) or "none"
    lacking = walls.lacking()
    state = "programs run" if works else "a plain program does not run"
    if lacking:
        state += f", but without protection of {'; '.join(lacking)}: refused unless sandbox.protection=available"
    return [
        ("sandbox", state),
        ("sandbox walls", f"namespaces {spaces}; Landlock {walls.landlock or 'none'}; calls filtered: {walls.filter}"),
        ("sandbox attacks", f"got through: {', '.join(through)}" if through else f"all {len(_attacks())} held off"),
    ]


def _attacks() -> dict[str, str]:
    with tempfile.NamedTemporaryFile(prefix="puna-self-test-", delete=False) as file:
        outside = file.name
    Path(outside).unlink()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return {
        "reading /etc/passwd": "open('/etc/passwd').read(1)",
        "reading this file": f"open({str(Path(__file__).resolve())!r}).read(1)",
        "reading the environment of others": f"open('/proc/{os.getpid()}/environ').read(1)",
        "writing outside": f"open({outside!r}, 'w')",
        "a link out": "os.symlink('/etc/passwd', 'l'); open('l').read(1)",
        "a connection": f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
        "signals": f"os.kill({os.getpid()}, 0)",
        "a process": "os.fork() or os._exit(0)",
        "another program": "os.execv('/bin/true', ['true'])",
        "becoming root": "os.setuid(0); open('/etc/shadow')",
    }


def _refused(box: Sandbox, code: str) -> bool:
    source = f"import os\ndef f():\n    try:\n        {code}\n    except {_REFUSED}:\n        return 1\n    return 0"
    return box.run(Program(source, FunctionTests("assert f() == 1"))).correct
