"""The process of the tests: asks the candidate, compares, and alone writes the verdict.

The tests are ordinary Python, as HumanEval and MBPP have them. The program's names are stand-ins whose calls are asked
of the other process; results are plain data, compared here. A stand-in is equal to itself only, so an answer that is no
data is no right answer. The tests may use stand-ins as they would the objects: call, attributes, iteration, length,
items, text.

Nothing of the tests was in memory when the candidate was forked.
"""

import builtins
import importlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from puna.sandbox import plain

_BROKEN = "the program broke the protocol"


class GoneError(BaseException):
    """The candidate ended; no test can catch it as an Exception."""


class RefusedError(BaseException):
    """The tests ask for something that cannot be asked across processes."""


class RaisedError(Exception):
    """The program raised something that is no common exception."""


class Session:
    """The judge's end of the talk with a candidate.

    Args:
        requests: Where to ask.
        answers: Where the answers come.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self.gone: BaseException | None = None
        self.memory = False

    def ask(self, *message: Any) -> list[Any]:
        """One request and what came of it.

        Raises:
            GoneError: The candidate ended or broke the protocol.
            Exception: What the program raised, as the nearest exception that every Python has.
        """
        if self.gone is not None:
            raise self.gone
        try:
            if message:
                plain.send(self._requests, list(message))
            answer = plain.receive(self._answers)
            if not (isinstance(answer, list) and answer and answer[0] in ("value", "names", "raised")):
                raise plain.NotPlainError(_BROKEN)
            if answer[0] == "raised":
                self._raise(*answer[1:])
        except (EOFError, BrokenPipeError):
            self.gone = GoneError("the program ended before its tests did")
            raise self.gone from None
        except plain.NotPlainError as error:
            self.gone = GoneError(f"{_BROKEN}: {error}")
            raise self.gone from None
        return answer

    def _raise(self, name: Any, known: Any, text: Any) -> None:
        self.memory = self.memory or (name == "MemoryError")
        for one in known if isinstance(known, list) else ():
            found = getattr(builtins, str(one), None)
            if isinstance(found, type) and issubclass(found, Exception):
                try:
                    error = found(str(text))
                except TypeError:  # UnicodeDecodeError and its like want more
                    continue
                error.__dict__["program"] = f"{name}: {text}"
                raise error
        raise RaisedError(f"{name}: {text}")

    def value(self, *message: Any) -> Any:
        """The value of a request."""
        return self.open(self.ask(*message)[1])

    def open(self, node: Any) -> Any:
        """A value, with stand-ins for what is no data."""
        try:
            return plain.decode(node, lambda number: Remote(self, number))
        except plain.NotPlainError as error:
            self.gone = GoneError(f"{_BROKEN}: {error}")
            raise self.gone from None

    def pack(self, value: Any) -> Any:
        """An argument, as the candidate can read it."""
        try:
            return plain.encode(value, _own_handle)
        except plain.NotPlainError as error:
            raise RefusedError(f"the tests pass something that is no data: {error}") from None

    def call(self, number: int, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A call in the candidate; lists, dicts and sets that it changed are changed here."""
        arguments = self.pack(list(positional))
        answer = self.ask("call", number, arguments, self.pack(named))
        for place, node in answer[2]:
            own, new = positional[place], self.open(node)
            if isinstance(own, list) and isinstance(new, list):
                own[:] = new
            elif isinstance(own, dict | set) and isinstance(new, type(own)):
                own.clear()
                own.update(new)
        return self.open(answer[1])


def _own_handle(value: Any) -> int:
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    raise plain.NotPlainError(f"{type(value).__name__} is not plain data")


class Remote:
    """Stands for an object of the candidate.

    Args:
        session: Where to ask.
        number: The object's handle.
    """

    __slots__ = ("_number", "_session")

    def __init__(self, session: Session, number: int) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_number", number)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call the object there."""
        return self._session.call(self._number, positional, named)

    def __getattr__(self, name: str) -> Any:
        return self._session.value("get", self._number, name)

    def __len__(self) -> int:
        return self._session.value("size", self._number)

    def __getitem__(self, key: Any) -> Any:
        return self._session.value("item", self._number, self._session.pack(key))

    def __str__(self) -> str:
        return self._session.value("text", self._number)

    def __bool__(self) -> bool:
        return True  # what the program calls true is not asked: `assert f(x)` wants plain data

    def __iter__(self) -> Iterator[Any]:
        walker = self._session.value("iterate", self._number)
        while True:
            try:
                one = self._session.value("next", object.__getattribute__(walker, "_number"))
            except StopIteration:
                return
            yield one


def judge(session: Session, tests: dict[str, Any], ended: Callable[[], tuple[str, str]]) -> dict[str, str]:
    """Run the tests.

    Args:
        session: The candidate, already asked to load.
        tests: `{"source", "entry_point"}`, or `{"stdin", "stdout"}`.
        ended: Waits for a candidate that is gone, and says outcome and reason.

    Returns:
        `outcome` and `reason`.
    """
    try:
        outcome, reason = _script(session, tests) if "stdin" in tests else _functions(session, tests)
    except RefusedError as error:
        outcome, reason = "refused", str(error)
    except GoneError:
        outcome, reason = "crashed", ""
    except BaseException as error:
        outcome, reason = _failure(session, error)
    if session.gone is not None:  # whatever the tests made of it
        return dict(zip(("outcome", "reason"), _why(session.gone, ended), strict=True))
    return {"outcome": outcome, "reason": reason[:300]}


def _why(gone: BaseException, ended: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    if str(gone).startswith(_BROKEN):
        return "crashed", str(gone)
    return ended()


def _failure(session: Session, error: BaseException) -> tuple[str, str]:
    if session.memory and (isinstance(error, MemoryError) or "MemoryError" in str(error)):
        return "memory", "the program needs more memory than it may have"
    raised = getattr(error, "program", None) or (str(error) if isinstance(error, RaisedError) else None)
    if raised is not None:
        return "failed", f"the program raised {raised}"
    if isinstance(error, SyntaxError) and error.filename == "<tests>":
        return "refused", f"the tests are not Python: {error.msg}, line {error.lineno}"
    line = _line_of(error)
    where = f"test line {line}" if line else "a test"
    text = f": {error}" if str(error) else ""
    if isinstance(error, AssertionError):
        return "failed", f"{where} does not hold{text}"
    return "failed", f"{where} raised {type(error).__name__}{text}"


def _line_of(error: BaseException) -> int:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _functions(session: Session, tests: dict[str, Any]) -> tuple[str, str]:
    random.seed(0)
    _, names, modules = session.ask()
    namespace: dict[str, Any] = {"__name__": "tests"}
    for name, node in names.items():
        if name.isidentifier() and not name.startswith("__") and not hasattr(builtins, name):
            namespace[name] = session.open(node)
    for name, module in modules:
        if name == module and module in sys.stdlib_module_names:
            namespace[name] = importlib.import_module(module)
    entry = tests.get("entry_point")
    if entry and entry not in namespace:
        return "failed", f"the program has no {entry}"
    program_entry = namespace.get(entry) if entry else None
    exec(compile(tests["source"], "<tests>", "exec", dont_inherit=True), namespace)
    check = namespace.get("check")
    if entry and callable(check) and not isinstance(check, Remote):
        check(program_entry)
    return "passed", ""


def _script(session: Session, tests: dict[str, Any]) -> tuple[str, str]:
    printed = session.value("main", tests["stdin"])
    if not isinstance(printed, str):
        return "crashed", _BROKEN
    if _lines(printed) == _lines(tests["stdout"]):
        return "passed", ""
    return "failed", "other output"


def _lines(text: str) -> list[str]:
    """Lines without white space at their ends, and without empty ones at the end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n").split("\n")
