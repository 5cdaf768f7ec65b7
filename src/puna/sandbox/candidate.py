"""The process of the program: runs it, then does what the judge asks, and knows neither the tests nor their verdict.

It answers requests about the program's names and objects. All that it could forge is its own answers; what they are
compared with never enters this process.

    ["call", handle, args, kwargs] -> ["value", v, args after the call]   or ["raised", types, text]
    ["get", handle, name], ["item", handle, key], ["iterate" or "next" or "text" or "size", handle]
    ["main", text on standard input] -> ["value", what was printed]

The names of the program's public objects are sent first, or that it raised.
"""

import builtins
import contextlib
import os
import random
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from puna.sandbox import plain

_MAX_PRINTED = 4 << 20


class Candidate:
    """One program's namespace and the objects that the judge holds handles of.

    Args:
        requests: Where the judge asks.
        answers: Where it is answered.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def serve(self, source: str, *, as_script: bool) -> None:
        """Run the program and answer until nobody asks.

        Args:
            source: The program.
            as_script: It reads standard input and prints; then it is not run before the input is known.
        """
        random.seed(0)
        namespace: dict[str, Any] = {"__name__": "__main__" if as_script else "program", "__builtins__": builtins}
        if not as_script:
            self._answer(lambda: self._load(source, namespace))
        while True:
            try:
                what, *rest = plain.receive(self._requests)
            except EOFError:
                return
            if what == "main":
                self._answer(partial(self._main, source, namespace, *rest))
            else:
                self._answer(partial(self._do, what, rest))

    def _answer(self, work: Callable[[], list[Any]]) -> None:
        try:
            answer = work()
        except BaseException as error:
            answer = _raised(error)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        try:
            plain.send(self._answers, answer)
        except (plain.NotPlainError, MemoryError, RecursionError) as error:
            plain.send(self._answers, _raised(error))

    def _load(self, source: str, namespace: dict[str, Any]) -> list[Any]:
        exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
        names, modules = {}, []
        for name, value in list(namespace.items()):
            if name.startswith("__") or hasattr(builtins, name):
                continue
            if isinstance(value, types.ModuleType):
                modules.append([name, value.__name__])
            else:
                names[name] = plain.encode(value, self._keep)
        return ["names", names, modules]

    def _main(self, source: str, namespace: dict[str, Any], text: str) -> list[Any]:
        """Run a script with its standard input; gives what it printed."""
        data = text.encode("utf-8", "surrogatepass")
        for number, name in ((0, "input"), (1, "output")):
            handle = os.open(f".{name}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            if number == 0:
                plain.write_all(handle, data)
                os.lseek(handle, 0, os.SEEK_SET)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        try:
            exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        sys.stdout.flush()
        os.lseek(1, 0, os.SEEK_SET)
        return ["value", os.read(1, _MAX_PRINTED).decode("utf-8", "replace")]

    def _do(self, what: str, rest: list[Any]) -> list[Any]:
        target = self._objects[rest[0]]
        match what:
            case "call":
                positional = plain.decode(rest[1], self._find)
                named = plain.decode(rest[2], self._find)
                mutable = [n for n, item in enumerate(positional) if isinstance(item, list | dict | set)]
                before = [plain.encode(positional[n], self._keep) for n in mutable]
                value = target(*positional, **named)
                after = [plain.encode(positional[n], self._keep) for n in mutable]
                changed = [[n, new] for n, old, new in zip(mutable, before, after, strict=True) if old != new]
                return ["value", plain.encode(value, self._keep), changed]
            case "get":
                return ["value", plain.encode(getattr(target, rest[1]), self._keep)]
            case "iterate":
                return ["value", {"t": "handle", "v": self._keep(iter(target))}]
            case "next":
                return ["value", plain.encode(next(target), self._keep)]
            case "text":
                return ["value", plain.encode(str(target))]
            case "size":
                return ["value", plain.encode(len(target))]
            case "item":
                return ["value", plain.encode(target[plain.decode(rest[1], self._find)], self._keep)]
        raise ValueError(what)

    def _keep(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # kept for good, so its id stays its own
        return number

    def _find(self, number: int) -> Any:
        return self._objects[number]


def _raised(error: BaseException) -> list[Any]:
    """Names of the exception's classes that every Python has, the nearest first, and its text."""
    known = [one.__name__ for one in type(error).__mro__ if getattr(builtins, one.__name__, None) is one]
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return ["raised", type(error).__name__[:100], known, text.encode("utf-8", "replace").decode()]
