"""Arithmetic on small whole numbers, with the working shown where a number has two digits.

The worked answer splits numbers into tens and ones, so every step is a line of a small table: `27 + 35` is
`20 + 30 = 50, 7 + 5 = 12, 50 + 12 = 62`. Steps quote table lines, so table lines (one digit, or whole tens) are
building blocks and never tested.
"""

from random import Random

from puna.exercises.exercise import KNOWN, Check, Exercise, Level

NUMBER = Check("number")


def addition(rng: Random, level: Level) -> Exercise:
    """`a + b`, at most 99 + 99; level 1 is the tables."""
    if level == 1:
        a, b = rng.choice(((rng.randint(0, 9), rng.randint(0, 9)), (10 * rng.randint(1, 18), rng.randint(0, 18))))
        if a >= 10 and rng.random() < 0.4:
            a, b = 10 * rng.randint(1, 9), 10 * rng.randint(1, 9)
    elif level == 2:
        a, b = rng.randint(11, 99), rng.randint(1, 9)
    else:
        a, b = rng.randint(11, 99), rng.randint(11, 99)
    if rng.random() < 0.5:
        a, b = b, a
    low, high = sorted((a, b))
    block = high <= 9 or low % 10 == 0 or high % 10 == 0
    key = f"{KNOWN if block else ''}add:{low}:{high}"
    total = a + b
    steps = "" if block else f"{_addition_steps(a, b)} = {total}"
    question = rng.choice(
        (
            f"What is {a} + {b}?",
            f"Calculate {a} + {b}.",
            f"How much is {a} plus {b}?",
            f"Add {a} and {b}.",
            f"{a} + {b} = ?",
        )
    )
    statements = (
        f"{a} + {b} = {total}",
        f"{a} plus {b} is {total}.",
        f"{a} + {b}: {steps or total}",
        f"Tom has {a} nuts. He finds {b} more. Now he has {a} + {b} = {total} nuts.",
        f">>> {a} + {b}\n{total}",
    )
    return Exercise(
        question, str(total), key, "addition", level=level, check=NUMBER, working=steps, statements=statements
    )


def _addition_steps(a: int, b: int) -> str:
    tens_a, tens_b, ones = a // 10 * 10, b // 10 * 10, a % 10 + b % 10
    tens = tens_a + tens_b
    first = f"{tens_a} + {tens_b} = {tens}, " if tens_a and tens_b else ""
    return f"{first}{a % 10} + {b % 10} = {ones}, {tens} + {ones}"


def subtraction(rng: Random, level: Level) -> Exercise:
    """`a - b` with `0 <= b <= a <= 99`; level 1 is the tables."""
    if level == 1:
        a = rng.randint(0, 20)
        b = rng.randint(0, min(a, 9))
    elif level == 2:
        a = rng.randint(20, 99)
        b = rng.choice((rng.randint(1, 9), 10 * rng.randint(1, a // 10)))
    else:
        a = rng.randint(21, 99)
        b = rng.randint(11, a)
    block = b < 10 or b % 10 == 0
    left = a - b
    tens = b // 10 * 10
    steps = "" if block else f"{a} - {tens} = {a - tens}, {a - tens} - {b % 10} = {left}"
    question = rng.choice(
        (
            f"What is {a} - {b}?",
            f"Calculate {a} - {b}.",
            f"How much is {a} minus {b}?",
            f"Subtract {b} from {a}.",
            f"{a} - {b} = ?",
        )
    )
    statements = (
        f"{a} - {b} = {left}",
        f"{a} minus {b} is {left}.",
        f"{a} - {b}: {steps or left}",
        f"Emma has {a} coins. She gives away {b}. Now she has {a} - {b} = {left} coins.",
        f">>> {a} - {b}\n{left}",
    )
    key = f"{KNOWN if block else ''}subtract:{a}:{b}"
    return Exercise(
        question, str(left), key, "subtraction", level=level, check=NUMBER, working=steps, statements=statements
    )


def multiplication(rng: Random, level: Level) -> Exercise:
    """`a x b`: the tables up to 10, then one digit times a number up to 29, product at most 199."""
    a = rng.randint(2, 9)
    b = rng.randint(0, 10) if level == 1 else rng.randint(11, 19 if level == 2 else min(29, 199 // a))
    tens, ones = b // 10 * 10, b % 10
    block = b <= 10 or ones == 0
    product = a * b
    steps = (
        "" if block else f"{a} * {tens} = {a * tens}, {a} * {ones} = {a * ones}, {a * tens} + {a * ones} = {product}"
    )
    key = f"{KNOWN if block else ''}multiply:{min(a, b)}:{max(a, b)}"
    if rng.random() < 0.3:
        a, b = b, a
    question = rng.choice(
        (
            f"What is {a} * {b}?",
            f"What is {a} times {b}?",
            f"Calculate {a} * {b}.",
            f"Multiply {a} by {b}.",
            f"{a} * {b} = ?",
        )
    )
    statements = (
        f"{a} * {b} = {product}",
        f"{a} times {b} is {product}.",
        f"{a} * {b}: {steps or product}",
        f"{a} bags hold {b} apples each. That makes {a} * {b} = {product} apples.",
        f">>> {a} * {b}\n{product}",
    )
    return Exercise(
        question, str(product), key, "multiplication", level=level, check=NUMBER, working=steps, statements=statements
    )


def comparison(rng: Random, level: Level) -> Exercise:
    """Which of two numbers is larger, or smaller."""
    top = (20, 99, 999)[level - 1]
    a, b = rng.sample(range(top + 1), 2)
    low, high = sorted((a, b))
    larger = rng.random() < 0.5
    answer, other = (high, low) if larger else (low, high)
    word, short, sign = ("larger", "more", ">") if larger else ("smaller", "less", "<")
    question = rng.choice(
        (
            f"Which is {word}, {a} or {b}?",
            f"Which number is {word}: {a} or {b}?",
            f"What is {short}: {a} or {b}?",
            f"Choose the {word} number: {a} or {b}.",
        )
    )
    statements = (
        f"{answer} is {word} than {other}.",
        f"Of {a} and {b}, {answer} is {word}.",
        f"{answer} {sign} {other}",
        f">>> {'max' if larger else 'min'}({a}, {b})\n{answer}",
    )
    return Exercise(
        question, str(answer), _set_key((a, b)), "comparison", level=level, check=NUMBER, statements=statements
    )


def extreme(rng: Random, level: Level) -> Exercise:
    """The largest or smallest of three to five numbers."""
    numbers = rng.sample(range(100), level + 2)
    largest = rng.random() < 0.5
    answer = max(numbers) if largest else min(numbers)
    word, function = ("largest", "max") if largest else ("smallest", "min")
    shown = ", ".join(map(str, numbers))
    question = rng.choice(
        (
            f"Which number is the {word}: {shown}?",
            f"What is the {word} of {shown}?",
            f"Find the {word} number: {shown}.",
            f"What is {function}([{shown}]) in Python?",
        )
    )
    statements = (
        f"The {word} of {shown} is {answer}.",
        f"{shown}: the {word} number is {answer}.",
        f">>> {function}([{shown}])\n{answer}",
    )
    return Exercise(
        question, str(answer), _set_key(numbers), "extreme", level=level, check=NUMBER, statements=statements
    )


def sort_numbers(rng: Random, level: Level) -> Exercise:
    """Three to five numbers in order."""
    numbers = rng.sample(range(100), level + 2)
    falling = rng.random() < 0.25
    ordered = ", ".join(map(str, sorted(numbers, reverse=falling)))
    shown = ", ".join(map(str, numbers))
    if falling:
        question = rng.choice((f"Sort from large to small: {shown}.", f"Sort these numbers, largest first: {shown}."))
        statements = (f"From large to small: {shown} -> {ordered}", f">>> sorted([{shown}], reverse=True)\n[{ordered}]")
    else:
        question = rng.choice(
            (
                f"Sort these numbers: {shown}.",
                f"Sort from small to large: {shown}.",
                f"Put these numbers in order: {shown}.",
                f"Write these numbers in order, smallest first: {shown}.",
            )
        )
        statements = (
            f"From small to large: {shown} -> {ordered}",
            f"{shown} in order: {ordered}.",
            f">>> sorted([{shown}])\n[{ordered}]",
        )
    key = _set_key(numbers)
    return Exercise(question, ordered, key, "sort_numbers", level=level, check=Check("list"), statements=statements)


def _set_key(numbers: tuple[int, ...] | list[int]) -> str:
    return "numbers:" + ",".join(map(str, sorted(numbers)))
