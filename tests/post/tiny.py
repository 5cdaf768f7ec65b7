"""A byte tokenizer, a tiny model and a few dialogs that the tests of this room share."""

import random

import torch

from puna.core.dialog import Dialog, Message
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.post.dialogs import DialogRow
from puna.post.preference_rows import Preference
from puna.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
SPECIALS = TOKENIZER.specials


def tiny_model(seed=0, *, dtype=torch.float64, tie_embeddings=False):
    config = ModelConfig(
        dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, vocab_size=512, tie_embeddings=tie_embeddings
    )
    model = init_weights(Transformer(config), seed).to(dtype)
    with torch.no_grad():  # a fresh model's logits are nearly equal; spread them, so that mistakes show
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0)
    return model


def words(rng, low, high):
    return "".join(rng.choice("abcde ") for _ in range(rng.randint(low, high))) + "."


def dialog_rows(n, *, seed=0, longest=30):
    rng = random.Random(seed)
    rows = []
    for index in range(n):
        turns = []
        for _ in range(rng.randint(1, 3)):
            turns += [("user", words(rng, 1, longest)), ("assistant", words(rng, 1, longest))]
        rows.append(DialogRow(Dialog.of(*turns), f"source{index % 2}"))
    return rows


def preferences(n, *, seed=0, longest=20):
    rng = random.Random(seed)
    return [
        Preference(
            prompt=Dialog.of(("user", words(rng, 1, longest))),
            chosen=(Message("assistant", words(rng, 1, longest) + "!"),),
            rejected=(Message("assistant", words(rng, 1, longest)),),
        )
        for _ in range(n)
    ]
