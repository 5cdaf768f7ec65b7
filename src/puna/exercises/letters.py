"""Words as letters: spelling, reversing, counting, first and last letters, and alphabetical order.

A byte-level tokenizer shows a common word as one token, so a model has to learn how its tokens are spelt. Answers are
letters with spaces between (`p e a r`): each is one token, which makes the skill learnable and the answer checkable.
"""

from random import Random

from puna.exercises.exercise import KNOWN, Check, Exercise, Level
from puna.exercises.words import WORDS

_BY_LEVEL = tuple(tuple(w for w in WORDS if low <= len(w) <= high) for low, high in ((2, 4), (5, 5), (6, 8)))
_LETTERS = Check("letters")
_NUMBER = Check("number")


def spaced(word: str) -> str:
    """`pear -> p e a r`."""
    return " ".join(word)


def spell(rng: Random, level: Level) -> Exercise:
    """The letters of a word; real words are building blocks of the other kinds, so invented ones are tested."""
    invented = rng.random() < 0.5
    if invented:
        ends = "" if rng.random() < 0.5 else rng.choice("nrlst")
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(1 + level)) + ends
        invented = word not in WORDS
    else:
        word = rng.choice(_BY_LEVEL[level - 1])
    question = rng.choice(
        (
            f"Spell the word {word}.",
            f"How do you spell {word}?",
            f"Which letters are in {word}?",
            f"Spell {word} letter by letter.",
        )
    )
    statements = (
        f"{word}: {spaced(word)}",
        f"The word {word} is spelt {spaced(word)}.",
        f"{spaced(word)} spells {word}.",
        f">>> ' '.join('{word}')\n'{spaced(word)}'",
    )
    answer = spaced(word)
    key = f"{'' if invented else KNOWN}spell:{word}"
    return Exercise(question, answer, key, "spell", level=level, check=_LETTERS, statements=statements)


def reverse(rng: Random, level: Level) -> Exercise:
    """A word, or letters without sense, written backwards."""
    nonsense = rng.random() < 0.5
    if nonsense:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(level + 2))
        question = rng.choice(
            (
                f"Reverse the letters: {spaced(word)}",
                f"Write these letters backwards: {spaced(word)}",
                f"Turn the letters around: {spaced(word)}",
            )
        )
    else:
        word = rng.choice(_BY_LEVEL[level - 1])
        question = rng.choice(
            (
                f"Reverse the word {word}.",
                f"Write {word} backwards.",
                f"Spell {word} backwards.",
                f"What is {word} written backwards?",
            )
        )
    back = spaced(word[::-1])
    statements = (
        f"{spaced(word)} reversed is {back}.",
        f"Backwards, {word if not nonsense else spaced(word)} is {back}.",
        f"{spaced(word)} -> {back}",
    )
    return Exercise(question, back, f"reverse:{word}", "reverse", level=level, check=_LETTERS, statements=statements)


def word_length(rng: Random, level: Level) -> Exercise:
    """How many letters a word has; the answer counts along."""
    word = rng.choice(_BY_LEVEL[level - 1])
    answer = str(len(word))
    working = " ".join(f"{letter}{n}" for n, letter in enumerate(word, start=1)) + f" = {answer}"
    question = rng.choice(
        (
            f"How many letters does the word {word} have?",
            f"How many letters are in {word}?",
            f"Count the letters of {word}.",
            f"How long is the word {word}?",
            f"What is len('{word}') in Python?",
        )
    )
    statements = (
        f"The word {word} has {answer} letters: {spaced(word)}.",
        f"{word}: {working}",
        f">>> len('{word}')\n{answer}",
    )
    key = f"length:{word}"
    return Exercise(
        question, answer, key, "word_length", level=level, check=_NUMBER, working=working, statements=statements
    )


def count_letter(rng: Random, level: Level) -> Exercise:
    """How often a letter occurs in a word; the answer counts along."""
    word = rng.choice(_BY_LEVEL[level - 1])
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("aeionrst")
    seen, steps = 0, []
    for one in word:
        seen += one == letter
        steps.append(f"{one}{seen}")
    working = f"{' '.join(steps)} = {seen}"
    question = rng.choice(
        (
            f"How often is the letter {letter} in {word}?",
            f"How many times does {letter} occur in {word}?",
            f"Count the letter {letter} in {word}.",
            f"What is '{word}'.count('{letter}') in Python?",
        )
    )
    times = "once" if seen == 1 else f"{seen} times"
    statements = (
        f"The letter {letter} occurs {times} in {word}.",
        f"{letter} in {word}: {working}",
        f">>> '{word}'.count('{letter}')\n{seen}",
    )
    key = f"count:{word}:{letter}"
    return Exercise(
        question, str(seen), key, "count_letter", level=level, check=_NUMBER, working=working, statements=statements
    )


def end_letter(rng: Random, level: Level) -> Exercise:
    """The first or the last letter of a word."""
    word = rng.choice(_BY_LEVEL[level - 1])
    first = rng.random() < 0.5
    answer, place, index = (word[0], "first", 0) if first else (word[-1], "last", -1)
    question = rng.choice(
        (
            f"What is the {place} letter of {word}?",
            f"Which letter is {place} in the word {word}?",
            f"Give the {place} letter of {word}.",
            f"What is '{word}'[{index}] in Python?",
        )
    )
    verb = "begins" if first else "ends"
    statements = (
        f"The {place} letter of {word} is {answer}.",
        f"{word} {verb} with {answer}.",
        f">>> '{word}'[{index}]\n'{answer}'",
    )
    check = Check("text", accept=(f"'{answer}'", f'"{answer}"'))
    key = f"end:{word}:{index}"
    return Exercise(question, answer, key, "end_letter", level=level, check=check, statements=statements)


def sort_words(rng: Random, level: Level) -> Exercise:
    """Three or four words in the order of the alphabet; up to level 2 their first letters differ."""
    count = 3 if level == 1 else 4
    words = rng.sample(WORDS, count)
    while level < 3 and len({w[0] for w in words}) < count:
        words = rng.sample(WORDS, count)
    shown, ordered = ", ".join(words), ", ".join(sorted(words))
    question = rng.choice(
        (
            f"Sort these words: {shown}.",
            f"Put these words in alphabetical order: {shown}.",
            f"Sort by the alphabet: {shown}.",
            f"Write these words from a to z: {shown}.",
        )
    )
    statements = (
        f"In alphabetical order: {shown} -> {ordered}",
        f"{shown} in the order of the alphabet: {ordered}.",
        f"From a to z: {ordered}.",
    )
    key = "words:" + ",".join(sorted(words))
    return Exercise(question, ordered, key, "sort_words", level=level, check=Check("list"), statements=statements)
