import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.exercises.exercise import Check, Exercise
from puna.exercises.generate import KINDS, generate
from puna.exercises.verify import verify

SAMPLE = [e for name in KINDS for e in generate("train", n=30, seed=11, kinds=[name])]
ANY = st.sampled_from(SAMPLE)


@given(ANY, st.sampled_from(["", " ", "\n", "."]))
def test_the_own_answer_is_right_with_light_variation(exercise, tail):
    if exercise.check.how == "function" and tail == ".":
        tail = ""
    assert verify(exercise, f" {exercise.response}{tail}").correct


@given(ANY, st.sampled_from(["z", " and more", "7", ", x"]))
def test_an_answer_that_goes_on_is_wrong(exercise, more):
    assert not verify(exercise, exercise.answer + more).correct


@given(ANY, st.data())
def test_a_lost_character_is_noticed(exercise, data):
    letters = [i for i, c in enumerate(exercise.answer) if c.isalnum()]
    if exercise.check.how == "function":
        letters = [i for i in letters if i >= len("def f(x): ")]
    index = data.draw(st.sampled_from(letters))
    broken = exercise.answer[:index] + exercise.answer[index + 1 :]
    verdict = verify(exercise, broken)
    if not verdict.correct:
        assert verdict.reason != "correct"
    else:
        accepted = exercise.check.accept
        assert exercise.check.how == "function" or broken.strip() in accepted, (exercise, broken)


@given(ANY, ANY)
def test_the_answer_to_another_question_is_right_only_when_it_is_equal(one, other):
    if one.answer.casefold() != other.answer.casefold() and verify(one, other.answer).correct:
        assert other.answer in one.check.accept or one.check.how == "function"


@given(st.text(max_size=60), ANY)
def test_any_text_is_judged_with_a_reason(text, exercise):
    verdict = verify(exercise, text)
    assert isinstance(verdict.correct, bool)
    assert verdict.reason


def exercise(how, answer, **more):
    return Exercise("?", answer, "k", "addition", check=Check(how, **more))


@pytest.mark.parametrize(
    ("how", "answer", "given_answer", "reason"),
    [
        ("number", "62", "20 + 30 = 50, 7 + 5 = 12, 50 + 12 = 62", "correct"),
        ("number", "62", "50 + 12 = 61", "other number"),
        ("number", "62", "sixty-two", "no number at the end"),
        ("number", "62", "62 = 61", "other number"),
        ("letters", "t a c", "tac", "correct"),
        ("letters", "t a c", "T-A-C", "correct"),
        ("letters", "t a c", "c a t", "letters in another order"),
        ("letters", "t a c", "t a", "another number of letters"),
        ("letters", "t a c", "t a d", "other letters"),
        ("list", "a, b", "a,b", "correct"),
        ("list", "a, b", "b, a", "items in another order"),
        ("text", "blue", "Blue.", "correct"),
        ("text", "blue", "blue ball", "right start, then more"),
        ("text", "blue", "red", "other text"),
        ("text", "blue", "", "empty"),
        ("text", "blue", "b" * 500, "too long"),
        ("text", "é", "é", "correct"),
    ],
)
def test_reasons(how, answer, given_answer, reason):
    verdict = verify(exercise(how, answer), given_answer)
    assert verdict.reason == reason
    assert verdict.correct == (reason == "correct")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("def f(x): return x + 2", "correct"),
        ("def anything(y):\n    return 2 + y", "correct"),
        ("def f(x): return x - 2", "fails a test"),
        ("def f(x): return x + 2 == 4", "fails a test"),
        ("def f(x): return open('a')", "cannot be evaluated"),
        ("lambda x: x + 2", "not a one-line function"),
        ("I do not know", "not a one-line function"),
        ("def f(x): return " + "x" * 300, "too long"),
    ],
)
def test_functions_are_judged_by_their_tests(answer, reason):
    task = exercise("function", "def f(x): return x + 2", tests=(("0", "2"), ("5", "7")))
    assert verify(task, answer).reason == reason
