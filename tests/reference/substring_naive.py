"""Repeated passages with a dictionary of every window."""


def repeated_words(texts, n):
    """For each text a mark for each of its words: part of a window of `n` words that was there before."""
    seen, marks = set(), []
    for text in texts:
        words = text.split()
        mark = [False] * len(words)
        for start in range(len(words) - n + 1):
            window = tuple(words[start : start + n])
            if window in seen:
                mark[start : start + n] = [True] * n
            seen.add(window)
        marks.append(mark)
    return marks
