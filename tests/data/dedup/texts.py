"""Texts of random words, and copies of them with some words changed."""

import random

from puna.data.document import Document

VOCABULARY = [f"w{i}" for i in range(5000)]


def random_text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=n))


def changed(text: str, rng: random.Random, share: float) -> str:
    return " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in text.split())


def documents(texts, **more) -> list[Document]:
    return [Document(text, "s", f"u{i}", **more) for i, text in enumerate(texts)]
