import subprocess
import sys
from collections import Counter
from functools import cache
from random import Random

import pytest

from puna.core.errors import UsageError
from puna.exercises.exercise import KNOWN, Exercise, split_of
from puna.exercises.generate import KINDS, dialogs, generate, texts
from puna.exercises.languages import phrase_books
from puna.exercises.verify import verify
from puna.exercises.words import WORDS


@cache
def stream(split: str, n: int = 8_000) -> tuple[Exercise, ...]:
    return tuple(generate(split, n=n, seed=7))


def everything() -> tuple[Exercise, ...]:
    return stream("train") + stream("test", 3_000)


def test_no_problem_is_in_both_splits():
    train, test = ({e.key for e in stream(split)} for split in ("train", "test"))
    assert len(test) > 2_500
    assert not train & test


def test_no_question_of_the_test_split_is_asked_in_training():
    asked = {e.question for e in stream("train", 30_000)}
    assert not asked & {e.question for e in stream("test", 3_000)}


def test_worked_steps_never_state_a_held_out_sum():
    for exercise in stream("train"):
        worked = exercise.working and exercise.kind in {"addition", "subtraction", "multiplication"}
        for step in exercise.working.split(", ") if worked else []:
            a, sign, b = step.split(" = ")[0].split()
            low, high = sorted((int(a), int(b)))
            key = {
                "+": f"add:{low}:{high}",
                "-": f"subtract:{a}:{b}",
                "*": f"multiply:{low}:{high}",
            }[sign]
            block = high <= 10 or low % 10 == 0 or high % 10 == 0 or (sign == "-" and int(b) < 10)
            assert block or split_of(key) == "train", exercise


def test_every_kind_has_the_split_it_promises():
    train = Counter(e.kind for e in stream("train"))
    test = Counter(e.kind for e in stream("test", 3_000))
    assert set(train) == set(KINDS)
    assert set(test) == {kind.name for kind in KINDS.values() if kind.tested}


def test_a_test_stream_has_no_problem_twice_and_ends_when_used_up():
    weekdays = list(generate("test", n=500, seed=1, kinds=["weekday", "month"]))
    keys = [e.key for e in weekdays]
    assert len(keys) == len(set(keys))
    assert 3 < len(keys) < 40


def test_a_training_stream_repeats_problems_only_when_a_kind_is_used_up():
    many = list(generate("train", n=2_000, seed=1, kinds=["weekday"]))
    assert len(many) == 2_000
    large = [e.key for e in generate("train", n=2_000, seed=1, kinds=["sort_words"])]
    assert len(set(large)) == 2_000


def test_equal_questions_have_equal_answers_whatever_their_kind():
    answers: dict[str, Exercise] = {}
    for exercise in everything():
        first = answers.setdefault(exercise.question, exercise)
        assert first.answer == exercise.answer, (first, exercise)


def test_questions_and_responses_are_single_lines_and_short():
    for exercise in everything():
        assert "\n" not in exercise.question + exercise.response
        assert exercise.question and len(exercise.response) <= 90
        assert all(exercise.statements)


def test_every_text_form_can_be_read_alone():
    for exercise in everything():
        for form in range(1 + len(exercise.statements)):
            assert exercise.as_text(form).strip() == exercise.as_text(form)


def test_names_and_levels_are_consistent():
    for exercise in everything():
        assert exercise.kind in KINDS
        assert exercise.language in phrase_books()


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k.problems <= 1_010], ids=lambda k: k.name)
def test_small_kinds_have_the_number_of_problems_that_the_table_states(kind):
    rng = Random(3)
    keys = {kind.draw(rng, rng.choice((1, 2, 3))).key for _ in range(40 * kind.problems)}
    assert 0.97 * kind.problems <= len(keys) <= kind.problems


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k.problems > 1_010], ids=lambda k: k.name)
def test_large_kinds_have_at_least_a_thousand_problems(kind):
    rng = Random(3)
    assert len({kind.draw(rng, rng.choice((1, 2, 3))).key for _ in range(6_000)}) > 1_010


def test_the_stream_is_the_same_in_another_process():
    program = (
        "from puna.exercises.generate import generate;"
        "print('|'.join(e.question for e in generate('train', n=300, seed=5)))"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "|".join(e.question for e in generate("train", n=300, seed=5))


def test_levels_and_kinds_can_be_chosen():
    chosen = list(generate("train", n=200, seed=0, kinds=["addition", "reverse"], levels=(1,)))
    assert {e.kind for e in chosen} == {"addition", "reverse"}
    assert {e.level for e in chosen} == {1}


def test_unknown_kinds_and_splits_are_usage_errors():
    with pytest.raises(UsageError, match="'adition' is not known"):
        generate("train", n=1, seed=0, kinds=["adition"])
    with pytest.raises(UsageError, match="split is 'dev'"):
        generate("dev", n=1, seed=0)  # type: ignore[arg-type]


def test_dialogs_end_with_an_answer_and_have_one_to_three_turns():
    made = list(dialogs("train", n=400, seed=2))
    assert len(made) == 400
    counts = Counter()
    for dialog in made:
        turns = [m.role for m in dialog.messages if m.role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        counts[len(turns) // 2] += 1
    assert set(counts) == {1, 2, 3}
    assert any(d.messages[0].role == "system" for d in made)


def test_texts_are_pages_of_one_or_several_exercises():
    pages = list(texts("train", n=400, seed=2))
    assert len(pages) == 400
    assert sum(page.count("Question: ") > 1 for page in pages) > 100
    assert sum("Question: " not in page for page in pages) > 50


def test_at_least_fifteen_languages_with_several_hundred_sentences():
    books = phrase_books()
    assert len(books) >= 15
    sentences = {s for book in books.values() for row in (*book.say, *book.meet) for s in row}
    assert len(sentences) > 500
    for book in books.values():
        assert (len(book.weekdays), len(book.numbers), len(book.names)) == (7, 10, 12)
        assert all("Puna" in answer for *asks, answer in book.say if "Puna" in answer)
        assert any("Puna" in row[-1] for row in book.say), book.code
        assert not any("{" in s for row in book.say for s in row)


def test_the_word_list_is_clean():
    assert len(WORDS) == len(set(WORDS)) >= 400
    assert all(w.isascii() and w.islower() and w.isalpha() and 2 < len(w) <= 8 for w in WORDS)


def test_building_blocks_are_marked_in_the_key():
    blocks = {e.kind for e in stream("train") if e.key.startswith(KNOWN)}
    assert {"addition", "subtraction", "multiplication", "greeting", "spell"} <= blocks


def test_every_exercise_verifies():
    for exercise in everything():
        assert verify(exercise, exercise.answer).correct, exercise
        assert verify(exercise, exercise.response).correct, exercise
