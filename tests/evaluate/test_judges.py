import pytest

from puna.evaluate import judges


@pytest.mark.parametrize(
    ("answer", "extracted", "correct"),
    [
        ("She has 5 + 7 = 12 eggs. The answer is 12.", "12", True),
        ("16 - 3 = 13\n#### 12", "12", True),
        ("It costs $1,200.00", "$1,200.00", False),
        ("12 apples", "12", True),
        ("the answer is 12, since 3 * 4 = 11 + 1", "12", True),
        ("The answer is $12.00", "$12.00", True),
        ("none", "", False),
    ],
)
def test_final_number(answer, extracted, correct):
    judgement = judges.final_number("12")(answer)
    assert (judgement.extracted, judgement.correct) == (extracted, correct)


def test_thousands_separators_are_no_difference():
    assert judges.final_number("1200")("The answer is 1,200").correct


@pytest.mark.parametrize(
    ("answer", "given"),
    [("B", "B"), (" b.", "B"), ("(B) because", "B"), ("The answer is B", "B"), ("I think C", "C"), ("???", "")],
)
def test_letter(answer, given):
    judgement = judges.letter("B", "ABCD")(answer)
    assert judgement.extracted == given
    assert judgement.correct == (given == "B")


def test_exact_ignores_articles_case_and_punctuation_in_the_first_line():
    judge = judges.exact("The Onion", "Allium cepa")
    assert judge("onion!\nIt grows.").correct
    assert judge("allium cepa").correct
    assert not judge("red onion").correct
    assert judge("").reason == "empty"


def test_pattern_takes_the_last_match():
    judge = judges.pattern(r"\[(\w+)\]", "yes")
    assert judge("[no] then [yes]").correct
    assert judge("yes").reason == "pattern not found"
