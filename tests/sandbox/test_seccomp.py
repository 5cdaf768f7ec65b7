"""The filter, read by a small machine of its own: what it says of every call on both processor families."""

import errno
import re
import struct
from pathlib import Path

import pytest

from puna.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def answer(code: bytes, *, number: int, architecture: int, argument: int = 0) -> int:
    """What the kernel's packet-filter machine returns (the seven instructions that are used)."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    accumulator, at = 0, 0
    lines = list(struct.iter_unpack("=HBBI", code))
    while True:
        operation, true, false, value = lines[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            at += true if accumulator == value else false
        elif operation == 0x35:
            at += true if accumulator >= value else false
        else:
            assert operation == 0x06
            return value


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("processes", [False, True])
def test_each_call_gets_its_answer(machine, processes):
    code = seccomp.program(machine, processes=processes)
    assert len(code) // 8 < 4096

    def say(number, argument=0):
        return answer(code, number=number, architecture=ARCHITECTURE[machine], argument=argument)

    refused = 0x50000 | errno.EPERM
    kills = {"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"}
    for name, number in seccomp.REFUSED[machine].items():
        assert say(number) == (ALLOW if processes and name in kills else refused), name
    for name, number in seccomp.STARTS[machine].items():
        assert say(number) == (ALLOW if processes else refused), name
    for name, number in seccomp.NEW_ALLOWED.items():
        assert say(number) == ALLOW, name
    assert {say(number) for number in (425, 435, 440, 450, 600)} == {0x50000 | errno.ENOSYS}
    reading, clone, prctl = {"x86_64": (0, 56, 157), "aarch64": (63, 220, 167)}[machine]
    assert say(reading) == ALLOW
    assert say(prctl, 1) == refused and say(prctl, 15) == ALLOW
    assert say(clone, 0x10F00) == ALLOW
    assert say(clone, 17) == (ALLOW if processes else refused)
    other = next(a for a in ARCHITECTURE.values() if a != ARCHITECTURE[machine])
    assert answer(code, number=reading, architecture=other) == KILL
    if machine == "x86_64":
        assert say(0x40000000) == refused


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_those_of_the_kernels_headers(machine, header):
    if not Path(header).exists():
        pytest.skip(f"{header} is not there")
    known = {n: int(v) for n, v in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
    ours = seccomp.REFUSED[machine] | seccomp.STARTS[machine] | seccomp.NEW_ALLOWED
    assert {name: known.get(name, number) for name, number in ours.items()} == ours
    assert len(ours.keys() & known.keys()) > 0.9 * len(ours)
