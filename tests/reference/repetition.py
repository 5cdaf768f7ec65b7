"""Naive twins of Gopher's repetition measures: every word of every n-gram is looked at."""


def top_ngram_characters(words: list[str], n: int) -> int:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    best = max((grams.count(gram) for gram in grams), default=0)
    if best < 2:
        return 0
    return max(best * len("".join(gram)) for gram in grams if grams.count(gram) == best)


def duplicate_ngram_characters(words: list[str], n: int) -> int:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    covered = {at + k for at, gram in enumerate(grams) if gram in grams[:at] for k in range(n)}
    return sum(len(words[i]) for i in covered)
