import pytest

from puna.exercises.exercise import KNOWN, Check, Exercise, split_of

SUM = Exercise(
    "What is 27 + 35?",
    "62",
    "add:27:35",
    "addition",
    check=Check("number"),
    working="50 + 12 = 62",
    statements=("27 + 35 = 62", "27 plus 35 is 62."),
)


def test_text_forms_are_a_question_with_its_answer_and_then_the_prose():
    assert [SUM.as_text(form) for form in range(4)] == [
        "Question: What is 27 + 35?\nAnswer: 50 + 12 = 62",
        "27 + 35 = 62",
        "27 plus 35 is 62.",
        "Question: What is 27 + 35?\nAnswer: 50 + 12 = 62",
    ]


def test_a_dialog_asks_and_answers_with_the_working():
    assert SUM.as_dialog().as_messages() == [
        {"role": "user", "content": "What is 27 + 35?"},
        {"role": "assistant", "content": "50 + 12 = 62"},
    ]


def test_an_exercise_survives_json():
    assert Exercise.from_json(SUM.as_json()) == SUM


@pytest.mark.parametrize(("key", "split"), [("add:27:35", "train"), ("add:28:39", "train"), ("add:11:16", "train")])
def test_the_split_of_a_key_never_changes(key, split):
    assert split_of(key) == split


def test_one_problem_in_ten_is_held_out_and_no_building_block():
    keys = [f"problem:{n}" for n in range(20_000)]
    held_out = sum(split_of(key) == "test" for key in keys)
    assert 1_850 < held_out < 2_150
    assert all(split_of(KNOWN + key) == "train" for key in keys)
