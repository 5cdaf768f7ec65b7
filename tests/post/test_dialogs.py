import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, CorruptError, MissingError
from puna.post.dialogs import read_dialogs, read_prompts

HELLO = Dialog.of(("user", "Hi"), ("assistant", "Hello"))
OPENAI = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
ALPACA = {"instruction": "Hi", "input": "", "output": "Hello"}


def written(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def problems_of(folder, *rows):
    with pytest.raises(ConfigError) as raised:
        read_dialogs([written(folder, *rows)])
    assert raised.value.exit_code == 2
    return raised.value.problems


@pytest.mark.parametrize("row", [OPENAI, SHAREGPT, ALPACA])
def test_each_form_gives_the_same_dialog(tmp_path, row):
    assert [r.dialog for r in read_dialogs([written(tmp_path, row)])] == [HELLO]


def test_forms_may_be_mixed_and_the_source_is_the_row_s_or_the_file_s(tmp_path):
    rows = read_dialogs([written(tmp_path, OPENAI | {"source": "mine"}, SHAREGPT, ALPACA, name="mixed.v2.jsonl")])
    assert [r.source for r in rows] == ["mine", "mixed", "mixed"]


def test_a_form_that_is_asked_for_is_insisted_on(tmp_path):
    with pytest.raises(ConfigError, match="sharegpt form must have 'conversations'"):
        read_dialogs([written(tmp_path, OPENAI)], form="sharegpt")


def test_alpaca_joins_input_and_keeps_system_and_history(tmp_path):
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief", "history": [["a", "b"]]}
    expected = Dialog.of(
        ("system", "Be brief"), ("user", "a"), ("assistant", "b"), ("user", "Add\n\n1 2"), ("assistant", "3")
    )
    assert read_dialogs([written(tmp_path, row)])[0].dialog == expected


def test_sharegpt_knows_tools(tmp_path):
    turns = [("system", "S"), ("human", "time?"), ("function_call", "clock()"), ("observation", "9"), ("gpt", "Nine")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    roles = [m.role for m in read_dialogs([written(tmp_path, row)])[0].dialog.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_openai_parts_and_tool_calls_become_text(tmp_path):
    call = {"type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "ti"}, {"type": "text", "text": "me?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "9"},
            {"role": "assistant", "content": "Nine"},
        ]
    }
    messages = read_dialogs([written(tmp_path, row)])[0].dialog.messages
    assert [m.content for m in messages] == [
        "S",
        "time?",
        '{"name": "clock", "parameters": {"zone": "UTC"}}',
        "9",
        "Nine",
    ]


def turns(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (turns("assistant"), "message 1 is assistant and comes first; allowed there: user"),
        (turns("user", "user", "assistant"), "message 2 is user and follows user; allowed there: assistant"),
        (turns("user", "assistant", "assistant"), "message 3 is assistant and follows assistant"),
        (turns("user", "tool", "assistant"), "message 2 is tool and follows user"),
        (turns("user", "system", "assistant"), "message 2 is a system message; there may be one, as the first"),
        (turns("system", "system", "user", "assistant"), "message 2 is a system message"),
        (turns("user"), "the last message is user; it must be assistant"),
        (turns("system"), "the last message is system"),
        (turns(), "holds no message"),
        (turns("user", "robot"), "the role of message 2 is 'robot'; allowed are system, user, assistant, tool"),
        ({"messages": "Hi"}, "'messages' is text; it must be a list"),
        ({"messages": ["Hi"]}, "message 1 is text; it must be an object"),
        ({"messages": [{"content": "Hi"}]}, "must have 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of message 1 is a number; it must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "'image_url'; only parts of type 'text'",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "'tool_calls' of message 1 is a number"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ({"question": "Hi"}, "has the keys 'question'; a dialog has 'messages' (openai)"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'from' of turn 1 is 'bot'; allowed are system, human"),
        ({"instruction": "Hi"}, "a row in the alpaca form must have 'output'"),
        ({"instruction": "Hi", "output": "x", "history": [["q"]]}, "exchange 1 of 'history' must be a list of"),
        ({"instruction": "Hi", "output": "  "}, "message 2 is an empty assistant answer"),
        ("3", "a row must be a JSON object, got a number"),
        ([1], "an entry must be a JSON object, got a number"),
        ('{"messages": ', "not valid JSON"),
        ("[" * 100_000, "begins as a JSON list and is not one"),
        ('{"a": ' * 100_000, "not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_file_line_and_what_is_allowed(tmp_path, row, said):
    (problem,) = problems_of(tmp_path, row)
    assert problem.startswith(f"{tmp_path / 'rows.jsonl'}") and said in problem


def test_all_problems_are_told_together_with_their_lines(tmp_path):
    problems = problems_of(tmp_path, OPENAI, turns("user"), "", OPENAI, turns("assistant"))
    assert [problem.split(": ")[0].rpartition(":")[2] for problem in problems] == ["2", "5"]


def test_reading_stops_at_the_limit(tmp_path):
    path = written(tmp_path, *[turns("user")] * 9)
    with pytest.raises(ConfigError) as raised:
        read_dialogs([path], max_problems=3)
    assert len(raised.value.problems) == 3
    text = str(raised.value)
    assert "cannot be used: 3 problems\n" in text and text.endswith("Reading stopped there; there may be more.")


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(OPENAI).encode() + b"\n" + b'{"messages": "caf\xe9"}\n')
    with pytest.raises(ConfigError, match=r"latin.jsonl:2: not UTF-8: byte 0xe9 at column 18"):
        read_dialogs([path])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_files_read_like_plain_ones(tmp_path, suffix):
    content = (json.dumps(OPENAI) + "\n").encode() * 50
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(pack(content))
    assert [row.dialog for row in read_dialogs([path])] == [HELLO] * 50


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, suffix):
    content = b"".join(json.dumps(OPENAI | {"n": n}).encode() + b"\n" for n in range(5000))
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.ZstdCompressor().compress(content)
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match=rf"rows.jsonl{suffix} is cut short or damaged after line \d+"):
        read_dialogs([path])


def test_a_json_list_and_a_folder_are_read(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([OPENAI, SHAREGPT], indent=1))
    written(tmp_path, ALPACA, name="a.jsonl")
    assert [row.source for row in read_dialogs([tmp_path])] == ["a", "b", "b"]


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no dialogs"):
        read_dialogs([written(tmp_path)])
    with pytest.raises(MissingError, match="is not there") as raised:
        read_dialogs([tmp_path / "absent.jsonl"])
    assert raised.value.exit_code == 3


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OPENAI).encode())
    assert read_dialogs([path])[0].dialog == HELLO


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "conversations", "role", "content", "from", "value", "instruction", "output"])
            | st.text(max_size=3),
            inner | st.sampled_from(["user", "assistant", "human", "gpt"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_gives_a_dialog_or_a_config_error(tmp_path_factory, value):
    path = written(tmp_path_factory.mktemp("any"), json.dumps(value))
    try:
        rows = read_dialogs([path])
    except ConfigError:
        return
    assert all(row.dialog.messages[-1].role == "assistant" for row in rows)


def test_weights_quality_difficulty_and_silent_messages_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "train": True},
    ]
    path.write_text(json.dumps({"messages": messages, "weight": 2, "quality": 0.5, "difficulty": 3}) + "\n")
    (row,) = read_dialogs([path])
    assert (row.silent, row.weight, row.quality, row.difficulty) == ({1}, 2.0, 0.5, 3.0)
    for bad in ({"weight": 0}, {"weight": "2"}, {"quality": True}, {"difficulty": float("nan")}):
        path.write_text(json.dumps({"messages": messages} | bad) + "\n")
        with pytest.raises(ConfigError, match="must be"):
            read_dialogs([path])
    messages[1]["weight"] = 0.5
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ConfigError, match=r"message 2 has weight 0\.5"):
        read_dialogs([path])


def test_prompts_lose_their_last_answer(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "q", "chosen": "a"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [d.messages[-1].content for d in read_prompts([path])] == ["q", "u"]
