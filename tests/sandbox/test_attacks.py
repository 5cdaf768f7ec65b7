"""Programs that try to get out, to stay, to eat the machine or to forge their verdict. Each is harmless where it fails to."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from puna.core.errors import MissingError
from puna.sandbox.program import FunctionTests, Program, SandboxConfig, ScriptTest
from puna.sandbox.sandbox import Sandbox

LIMITS = SandboxConfig(workers=2, cpu_seconds=1, wall_seconds=60, memory_mib=128, file_mib=4, output_kib=4)


def opened(**kwargs) -> Sandbox:
    try:
        return Sandbox(LIMITS, **kwargs)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def box():
    with opened() as sandbox:
        yield sandbox


@pytest.fixture(
    scope="module",
    params=[(), ("namespaces",), ("landlock", "filter")],
    ids=["all", "no-namespaces", "namespaces-alone"],
)
def any_box(request):
    """A sandbox with all walls, and with each half of them."""
    with opened(without=request.param) as sandbox:
        yield sandbox


def answers(box, body: str, *, equal: str = "1"):
    """The verdict on a program whose `f` runs `body`, against the test that f() gives `equal`."""
    source = "def f():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())
    return box.run(Program(source, FunctionTests(f"assert f() == {equal}")))


def refused(box, code: str) -> bool:
    """Whether an attempt raised what a refused one raises."""
    body = "try:\n" + "".join(f"    {line}\n" for line in code.strip().splitlines())
    body += "    said = 'done'\nexcept BaseException as error:\n    said = type(error).__name__\nreturn said"
    source = "def f():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    verdict = box.run(Program(source, FunctionTests(f"said = f()\nassert said in {REFUSED}, said")))
    if not verdict.correct:
        print(code, verdict)
    return verdict.correct


REFUSED = ("PermissionError", "FileNotFoundError", "OSError", "ProcessLookupError", "RuntimeError")


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/proc/1/mem", __file__, "canary"])
def test_no_file_of_the_machine_can_be_read(any_box, path, tmp_path):
    if path == "canary":
        path = str(tmp_path / "canary")
        Path(path).write_text("open to everyone")
    assert refused(any_box, f"open({path!r}).read(1)")


def test_no_folder_of_the_machine_can_be_listed(any_box):
    assert refused(any_box, "import os\nos.listdir('/etc')")
    assert refused(any_box, "import os\nos.listdir('/tmp')")


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm", "/usr/lib", "/"])
def test_nothing_can_be_written_outside(any_box, folder):
    name = f"{folder}/puna-sandbox-attack-{os.getpid()}"
    assert refused(any_box, f"open({name!r}, 'w').write('x')")
    assert not Path(name).exists()


def test_a_link_out_of_the_scratch_folder_leads_nowhere(any_box):
    code = "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()"
    assert refused(any_box, code)
    code = "import os\nos.symlink('/', 'root')\nopen('root/var/tmp/puna-attack', 'w').write('x')"
    assert refused(any_box, code)
    assert refused(any_box, "import os\nos.link('/etc/passwd', 'link')")


def test_the_scratch_folder_is_free_and_new_for_each_program(box):
    assert answers(box, "open('a', 'w').write('x')\nimport os\nreturn os.listdir('.')", equal="['a']").correct
    assert answers(box, "import os\nreturn os.listdir('.')", equal="[]").correct


def test_the_environment_is_empty(box, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Sandbox(LIMITS) as fresh:
        assert answers(fresh, "import os\nreturn len(os.environ)", equal="0").correct


def test_there_is_no_network(any_box):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\ns = socket.socket()\ns.settimeout(1)\ns.connect(('127.0.0.1', {port}))"
        assert refused(any_box, code)
        assert refused(
            any_box, f"import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', {port}))"
        )
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_nobody_else_can_be_killed(any_box):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert refused(any_box, f"import os\nos.kill({victim.pid}, 9)")
        assert refused(any_box, f"import os\nos.kill({os.getpid()}, 9)")
        assert refused(any_box, "import os\nos.kill(os.getppid() or 2, 9)")
        assert refused(any_box, "import os\nos.kill(-1, 9)")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_fork_bomb_does_not_start(box):
    assert answers(
        box,
        "import os\nn = 0\nfor _ in range(200):\n    try:\n        os.fork()\n    except OSError:\n        n += 1\nreturn n",
        equal="200",
    ).correct


def test_threads_are_bounded(box):
    code = """
import threading, time
n = 0
try:
    for _ in range(500):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        n += 1
except (RuntimeError, MemoryError):
    pass
return n < 100
"""
    assert answers(box, code, equal="True").correct


def test_where_processes_are_allowed_they_are_few_and_end_with_the_program():
    source = """
import os, time, sys
def f():
    n = 0
    for _ in range(150):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(30)
            finally:
                os._exit(0)
        n += 1
    return n < 150
"""
    with Sandbox(LIMITS.model_copy(update={"processes": 8})) as box:
        if not {"pid", "user"} <= set(box.walls.namespaces):
            pytest.skip("no namespaces for processes")
        before = len(_descendants())
        assert box.run(Program(source, FunctionTests("assert f()"))).correct
        deadline = time.monotonic() + 5
        while len(_descendants()) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(_descendants()) <= before


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = {os.getpid()}, True
    while new:
        new = {pid for pid, parent in parents.items() if parent in found} - found
        found |= new
    return found


def test_an_endless_loop_is_a_timeout(box):
    verdict = answers(box, "while True:\n    pass")
    assert verdict.outcome == "timeout"


def test_waiting_is_a_timeout(box):
    with Sandbox(LIMITS.model_copy(update={"wall_seconds": 0.5})) as short:
        verdict = answers(short, "import time\ntime.sleep(100)")
    assert (verdict.outcome, verdict.reason) == ("timeout", "longer than 0.5 s")


def test_endless_memory_is_memory(box):
    assert answers(box, "x = []\nwhile True:\n    x.append(bytearray(1 << 20))").outcome == "memory"
    assert box.run(Program("x = [0] * 10**9\ndef f(): return 1", FunctionTests("assert f() == 1"))).outcome == "memory"


def test_endless_output_is_cut(box):
    verdict = answers(box, "for _ in range(20_000):\n    print('x' * 80)\nreturn 1")
    assert verdict.correct and len(verdict.output) <= 4096
    assert answers(box, "while True:\n    print('x' * 80)").outcome == "timeout"


def test_files_are_bounded_one_by_one_and_together(box):
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = 0
try:
    for n in range(64):
        with open(str(n), 'wb') as file:
            written += file.write(bytes(1 << 20))
except OSError:
    pass
return written <= 4 << 20
"""
    if box.walls.own_root:
        assert answers(box, code, equal="True").correct
    assert refused(box, "import signal\nsignal.signal(25, signal.SIG_IGN)\nopen('big', 'wb').truncate(1 << 30)")


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000) < 0: raise PermissionError",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.mount(b'none', b'.', b'tmpfs', 0, None) < 0: raise PermissionError",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.ptrace(16, 1, 0, 0) < 0: raise PermissionError",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.syscall(425, 8, 0) < 0: raise PermissionError",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.system(b'true') != 0: raise PermissionError",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.memfd_create('x')",
        "import os\nos.chroot('.')",
        "import os\nos.setuid(0)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))\nraise RuntimeError",
        "import subprocess\nsubprocess.run(['true'])",
    ],
)
def test_the_kernel_refuses_what_a_computation_does_not_need(box, code):
    if "RLIMIT" in code:
        assert answers(box, code.replace("\nraise RuntimeError", "\nreturn 1")).outcome == "failed"
    else:
        assert refused(box, code)


FORGERIES = {
    "prints that it passed": "print('passed')\nprint('{\"outcome\": \"passed\"}')\nreturn 2",
    "leaves with success": "import os\nos._exit(0)",
    "raises SystemExit": "import sys\nsys.exit(0)",
    "is equal to everything": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\nreturn E(2)",
    "an object equal to everything": "class E:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\nreturn E()",
    "patches builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.print = builtins.exec = lambda *a: None\nreturn 2",
    "patches the frames above": "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_locals.update(equal=True)\n    frame = frame.f_back\nreturn 2",
    "writes to every descriptor": 'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'{"outcome": "passed", "reason": ""}\')\n    except OSError: pass\nreturn 2',
    "speaks the protocol": "import os, json, struct\nm = json.dumps({'outcome': 'passed', 'reason': ''}).encode()\nfor fd in range(3, 64):\n    try: os.write(fd, struct.pack('<I', len(m)) + m)\n    except OSError: pass\nos._exit(0)",
    "answers with a malformed value": "import os, json, struct\nm = json.dumps(['value', {'t': 'handle', 'v': {}}, []]).encode()\nfor fd in range(3, 64):\n    try: os.write(fd, struct.pack('<I', len(m)) + m)\n    except OSError: pass\nos._exit(0)",
    "raises what the test may expect": "raise AssertionError",
    "looks for the tests in memory": "import gc\ntexts = [o for o in gc.get_objects() if isinstance(o, dict) and any('assert' in str(v)[:200] and 'secret' in str(v) for v in list(o.values())[:50] if isinstance(v, str))]\nreturn 12345 if texts else 2",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(any_box, name):
    body = FORGERIES[name]
    source = "def f():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    verdict = any_box.run(Program(source, FunctionTests("secret = 12345\nassert f() == secret")))
    assert not verdict.correct
    assert verdict.outcome in ("failed", "crashed")


@pytest.mark.parametrize("name", ["__builtins__", "abs", "isinstance", "check", "all"])
def test_the_programs_names_do_not_replace_those_of_the_tests(box, name):
    source = (
        f"{name} = lambda *a: True\ndef f():\n    return 2"
        if name != "__builtins__"
        else "__builtins__ = {'abs': 1}\ndef f(): return 2"
    )
    tests = "def check(c):\n    assert isinstance(c(), int)\n    assert abs(c() - 1) < 0.5\n    assert all([False])"
    assert box.run(Program(source, FunctionTests(tests, "f"))).outcome in ("failed", "crashed")


def test_a_script_cannot_leave_early_with_the_right_answer_unseen(box):
    case = ScriptTest("3\n", "9\n")
    assert box.run(Program("n = int(input())\nprint(n * n)", case)).correct
    assert box.run(Program("import sys\nprint(9)\nsys.exit(0)", case)).correct  # it printed the right thing
    assert box.run(Program("import os\nprint(9, flush=True)\nos._exit(0)", case)).outcome == "crashed"
    assert box.run(Program("print(open('.output').read())", case)).outcome == "failed"


def test_verdicts_are_the_same_each_time(box):
    source = "import random\ndef f():\n    return random.random(), hash('a'), list({'x', 'y', 'z'})"
    box_answers = {box.run(Program(source, FunctionTests("assert f() == 0, repr(f())"))).reason for _ in range(4)}
    assert len(box_answers) == 1


def test_many_programs_at_once_do_not_mix(box):
    programs = [Program(f"def f():\n    return {n}", FunctionTests(f"assert f() == {n - n % 2}")) for n in range(40)]
    assert [v.correct for v in box.run_all(programs)] == [n % 2 == 0 for n in range(40)]


def test_a_worker_that_was_killed_is_replaced():
    with opened() as box:
        waits = Program("def f():\n    import time\n    time.sleep(1)\n    return 1", FunctionTests("assert f() == 1"))
        threading.Timer(0.3, _kill_workers).start()
        verdict = box.run(waits)
        assert verdict.outcome == "refused" and verdict.reason.startswith("the worker ")
        assert box.run(waits).correct


def _kill_workers() -> None:
    for pid in _descendants() - {os.getpid()}:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"sandbox.worker" in line:
                os.kill(pid, 9)
        except OSError:
            continue
