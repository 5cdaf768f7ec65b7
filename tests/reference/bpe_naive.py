"""Naive twins of the tokenizer: the definitions, written as plainly as possible and slow.

`split` uses the `regex` package, `encode_piece` merges by looking at every pair, `train` recounts everything after each
merge, `official_pieces` walks character by character. They share no code with the product.
"""

from collections import Counter
from itertools import pairwise

import regex

PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(text: str) -> list[str]:
    return PATTERN.findall(text)


def encode_piece(ranks: dict[bytes, int], piece: bytes) -> list[int]:
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([b]) for b in piece]
    while True:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            return [ranks[p] for p in parts]
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def encode(ranks: dict[bytes, int], text: str) -> list[int]:
    return [i for piece in official_pieces(text) for word in split(piece) for i in encode_piece(ranks, word.encode())]


def train(texts: list[str], n_ranks: int) -> dict[bytes, int]:
    words = Counter(tuple(word.encode()) for text in texts for word in split(text))
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < n_ranks:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(tokens[best[0]] + tokens[best[1]])
        merged: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            out: list[int] = []
            i = 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(len(tokens) - 1)
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += count
        words = merged
    return {token: rank for rank, token in enumerate(tokens)}


def official_pieces(text: str, *, most: int = 400_000, run: int = 25_000) -> list[str]:
    pieces = []
    for start in range(0, max(len(text), 1), most):
        window = text[start : start + most]
        piece, length, kind = "", 0, None
        for character in window:
            if character.isspace() != kind:
                kind, length = character.isspace(), 0
            length += 1
            if length > run:
                pieces.append(piece)
                piece, length = "", 1
            piece += character
        pieces.append(piece)
    return pieces
