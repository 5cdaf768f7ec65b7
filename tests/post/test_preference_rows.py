import json

import pytest

from puna.core.dialog import Dialog, Message
from puna.core.errors import ConfigError
from puna.post.preference_rows import read_preferences
from puna.post.preferences import export
from puna.post.preferences.interchange import ultrafeedback
from puna.post.preferences.quality import QualityConfig, check
from puna.post.preferences.records import Item, Label

ASK = [{"role": "user", "content": "2+2?"}]
FOUR, FIVE = [{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "5"}]

PLAIN = {"prompt": "a", "chosen": "b", "rejected": "c"}


def read(folder, *rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_preferences([path])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": ASK, "chosen": FOUR, "rejected": FIVE},
        {"prompt": "2+2?", "chosen": ASK + FOUR, "rejected": ASK + FIVE},
        {"chosen": ASK + FOUR, "rejected": ASK + FIVE},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    ],
    ids=["text", "messages", "prompt repeated", "implicit prompt", "transcript"],
)
def test_each_form_gives_the_same_preference(tmp_path, row):
    (preference,) = read(tmp_path, row)
    assert preference.prompt == Dialog.of(("user", "2+2?"))
    assert preference.chosen == (Message("assistant", "4"),)
    assert preference.rejected == (Message("assistant", "5"),)


def test_the_implicit_prompt_holds_all_common_turns(tmp_path):
    earlier = [*ASK, *FOUR, {"role": "user", "content": "sure?"}]
    (preference,) = read(tmp_path, {"chosen": earlier + FOUR, "rejected": earlier + FIVE})
    assert len(preference.prompt.messages) == 3


def test_what_is_known_about_a_pair_is_kept_and_written_back(tmp_path):
    row = {"prompt": "2+2?", "chosen": "four", "rejected": "5", "edited": "4"}
    row |= {"strength": 4, "annotator": "a7", "round": 2, "source": "people", "metadata": {"any": 1}}
    (preference,) = read(tmp_path, row)
    assert preference.strength == "significantly_better" and preference.best == (Message("assistant", "4"),)
    assert (preference.annotator, preference.round, preference.source) == ("a7", 2, "people")
    assert read(tmp_path, preference.as_row()) == [preference]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "must have 'chosen' and 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": " b "}, "are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "'rejected' after the prompt: message 1 is an empty"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "'chosen' is a number; it must be text or a list of messages"),
        ({"prompt": FOUR, "chosen": "b", "rejected": "c"}, "'prompt': message 1 is assistant and comes first"),
        ({"chosen": "b", "rejected": "c"}, "has no 'prompt', and 'chosen' and 'rejected' do not begin"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "strength": 5}, "'strength' is 5; allowed are marginally"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "round": "1"}, "'round' is text; it must be a number"),
        ({"prompt": "a", "chosen": ASK, "rejected": "c"}, "'chosen' after the prompt: message 1 is user"),
        (
            PLAIN | {"streangth": 3},
            "'streangth' is not one of preferences. Did you mean 'strength' instead of 'streangth'?",
        ),
        (PLAIN | {"Weight": 3}, "Did you mean 'weight' instead of 'Weight'?"),
        (PLAIN | {"edit": "b!"}, "Did you mean 'edited' instead of 'edit'?"),
        (
            PLAIN | {"strength": 3, "mood": 1},
            "'mood' beside 'strength' is not a key of preferences; allowed are prompt",
        ),
        (PLAIN | {"prompt": ""}, "'prompt' is empty; it must say what was asked"),
        (PLAIN | {"prompt": [{"role": "user", "content": " "}]}, "'prompt' is empty"),
        (PLAIN | {"edited": ""}, "'edited' after the prompt: message 1 is an empty assistant answer"),
        (PLAIN | {"edited": []}, "'edited' after the prompt: holds no message"),
        (PLAIN | {"ranking": ["x", "y"]}, "has 'ranking' and 'chosen'; a row is either a ranking or a pair"),
        (PLAIN | {"weight": 1e308}, "'weight' is 1e+308; it must be a number above 0, at most 1000"),
        (PLAIN | {"weight": float("nan")}, "'weight' is nan"),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused_with_the_reason(tmp_path, row, said):
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, row)
    (problem,) = raised.value.problems
    assert "pairs.jsonl:1: " in problem and said in problem


def test_columns_of_published_sets_stand_beside_the_pair(tmp_path):
    talk = {"prompt": "2+2?", "chosen": ASK + FOUR, "rejected": ASK + FIVE}
    found = read(
        tmp_path,
        talk | {"prompt_id": "p", "messages": ASK + FOUR, "score_chosen": 9.0, "score_rejected": 2.0},
        talk | {"source": "s", "chosen-rating": 5, "chosen-model": "m", "rejected-rating": 1, "rejected-model": "n"},
        talk | {"dataset": "d", "chosen_rating": 5.0, "rejected_rating": 1.0, "chosen_model": "m", "conversation": []},
        talk | {"id": "x", "category": "c", "edited": None, "weight": 1000},
    )
    assert [row.weight for row in found] == [None, None, None, 1000.0]


def test_rows_of_our_own_exports_are_read(tmp_path):
    items = [Item(f"i{n}", Dialog.of(("user", f"{n}?")), "yes", "no", "m", "o") for n in range(3)]
    labels = [Label(item.id, name, value=3, edit="yes!") for item in items for name in "xyz"]
    found = check(items, labels, QualityConfig(resamples=0))
    assert len(read(tmp_path, *export.training_rows(items, found))) == 3
    assert len(read(tmp_path, *export.unchecked_rows(items, labels))) == 3
    assert len(read(tmp_path, *export.raw_rows(items, labels))) == 9
    written = ultrafeedback.write(items, labels).files[ultrafeedback.ROWS]
    assert len(read(tmp_path, *map(json.loads, written.splitlines()))) == 9
