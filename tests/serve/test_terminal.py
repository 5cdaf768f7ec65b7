"""The terminal chat, driven by a list of lines."""

import os
import signal

import pytest

from puna.core.generator import Sampling
from puna.serve.terminal import chat_loop
from tests.serve.fake import FakeGenerator


def talk(generator, *lines, **settings):
    shown = []
    waiting = iter(lines)

    def read_line(prompt):
        try:
            line = next(waiting)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    dialog = chat_loop(generator, read_line=read_line, write=shown.append, **settings)
    return dialog.as_messages(), "".join(shown)


def test_the_dialog_grows_by_two_messages_a_turn():
    generator = FakeGenerator()
    messages, shown = talk(generator, "Hi", "", "And now?")
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[1]["content"] == "Hello world" and "Hello world\n" in shown
    assert len(generator.prompts[1].messages) == 3


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_end_of_input_and_ctrl_c_at_the_prompt_leave(end):
    messages, _ = talk(FakeGenerator(), "Hi", end, "never read")
    assert len(messages) == 2


def test_quit_leaves():
    generator = FakeGenerator()
    talk(generator, "/quit", "never asked")
    assert generator.prompts == []


def test_system_message_starts_anew_and_survives_a_reset():
    generator = FakeGenerator()
    messages, _ = talk(generator, "Hi", "/system Be brief.", "One", "/reset", "Two")
    assert [m["content"] for m in messages] == ["Be brief.", "Two", "Hello world"]
    assert generator.prompts[-1].messages[0].role == "system"


def test_regen_asks_the_same_with_another_seed():
    generator = FakeGenerator()
    messages, _ = talk(generator, "Hi", "/regen", sampling=Sampling(seed=3))
    assert len(messages) == 2
    assert generator.prompts[0] == generator.prompts[1]
    assert generator.samplings[0].seed != generator.samplings[1].seed


def test_commands_explain_themselves():
    _, shown = talk(FakeGenerator(), "/help", "/regen", "/nonsense", "/system")
    for expected in ("/regen", "no answer yet", "no command /nonsense", "no system message"):
        assert expected in shown


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said():
    class Interrupted(FakeGenerator):
        def stream(self, prompt, sampling):
            for number, piece in enumerate(super().stream(prompt, sampling)):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                yield piece

    generator = Interrupted(["la "], endless=True)
    messages, shown = talk(generator, "Sing", "/help")
    assert generator.closed.is_set()
    assert messages[-1] == {"role": "assistant", "content": "la la la la "}
    assert "[stopped]" in shown and "/reset" in shown


def test_a_message_that_is_too_long_is_taken_back():
    messages, shown = talk(FakeGenerator(context=100), "x" * 200, "Hi")
    assert [m["content"] for m in messages] == ["Hi", "Hello world"]
    assert "200 tokens" in shown
