"""`puna chat`: a conversation in the terminal, over any `Generator`.

The answer streams. Ctrl-C stops the answer and keeps what was said of it; Ctrl-C at the prompt, Ctrl-D or /quit end the
chat. Reading and writing are handed in, so that the loop is tested without a terminal.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from collections.abc import Generator as PythonGenerator
from contextlib import closing, contextmanager
from types import FrameType

from puna.core.dialog import Dialog
from puna.core.errors import UsageError
from puna.core.generator import Generator, Piece, Sampling

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message and start anew; without TEXT: show it
/regen          write the last answer again, with other chances
/help           this list
/quit           leave (also Ctrl-D)
Ctrl-C stops an answer."""


class Chat:
    """The state of one conversation.

    Args:
        generator: Who answers.
        write: Receives pieces of text.
        sampling: How to draw.
        system: System message, or empty.
    """

    def __init__(self, generator: Generator, write: Callable[[str], None], sampling: Sampling, system: str) -> None:
        self._generator, self._write = generator, write
        self._sampling, self._system = sampling, system
        self._tries = 0
        self.dialog = Dialog(())
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.dialog = Dialog.of(("system", self._system)) if self._system else Dialog(())

    def obey(self, line: str) -> bool:
        """Carry out a command; whether the chat goes on."""
        name, _, rest = line.partition(" ")
        if name == "/quit" or name == "/exit":
            return False
        if name == "/reset":
            self.reset()
            self._write("The conversation is empty again.\n")
        elif name == "/system" and rest.strip():
            self._system = rest.strip()
            self.reset()
            self._write("New system message; the conversation is empty again.\n")
        elif name == "/system":
            self._write(f"{self._system or 'There is no system message.'}\n")
        elif name == "/regen":
            self._regenerate()
        elif name == "/help":
            self._write(HELP + "\n")
        else:
            self._write(f"There is no command {name}. These are:\n{HELP}\n")
        return True

    def say(self, text: str) -> None:
        """The user's turn, then the model's."""
        before = self.dialog
        self.dialog = self.dialog.plus("user", text)
        try:
            self._answer()
        except UsageError as error:  # the prompt does not fit: the turn is taken back, the chat goes on
            self.dialog = before
            self._write(f"{error}\nYour message was not sent. /reset forgets the conversation.\n")

    def _regenerate(self) -> None:
        messages = self.dialog.messages
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            self._write("There is no answer yet.\n")
            return
        self.dialog = Dialog(messages)
        self._answer()

    def _answer(self) -> None:
        # every answer draws from a seed of its own, or /regen would say the same again
        sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + self._tries)
        self._tries += 1
        said: list[str] = []
        stopped = False
        with closing(_closable(self._generator, self.dialog, sampling)) as pieces, _interrupt_flag() as interrupted:
            for piece in pieces:
                said.append(piece.text)
                self._write(piece.text)
                if interrupted():
                    stopped = True
                    break
        self._write(" [stopped]\n" if stopped else "\n")
        self.dialog = self.dialog.plus("assistant", "".join(said))


def _closable(generator: Generator, dialog: Dialog, sampling: Sampling) -> PythonGenerator[Piece, None, None]:
    yield from generator.stream(dialog, sampling)


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """While open, Ctrl-C sets a flag; between two pieces is a clean place to stop, inside a matrix product is not."""
    seen = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        if seen.is_set():
            raise KeyboardInterrupt  # the second time: at once
        seen.set()

    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def chat_loop(
    generator: Generator,
    *,
    read_line: Callable[[str], str],
    write: Callable[[str], None],
    sampling: Sampling | None = None,
    system: str = "",
) -> Dialog:
    """Talk until the user leaves.

    Args:
        generator: Who answers.
        read_line: Shows its argument and returns a line; raises EOFError at the end (the builtin `input` does).
        write: Receives pieces of text as they come (`core.console.write`).
        sampling: How to draw; by default Llama 3's temperature 0.6 and top-p 0.9.
        system: System message, or empty.

    Returns:
        The conversation as it was at the end.
    """
    chat = Chat(generator, write, sampling or Sampling(max_tokens=512, temperature=0.6, top_p=0.9), system)
    while True:
        try:
            line = read_line("> ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return chat.dialog
        if line.startswith("/"):
            if not chat.obey(line):
                return chat.dialog
        elif line:
            chat.say(line)
