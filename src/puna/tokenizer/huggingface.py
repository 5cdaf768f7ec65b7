r"""`tokenizer.json`, the form that Hugging Face's libraries read, out of ranks and back.

A ranks file holds no merges: tiktoken merges whichever adjacent pair joins to the lowest rank. The Hugging Face form
wants a list. So for each token every split into two known tokens becomes a merge, sorted by the ranks of its halves,
and the tokens follow each other by rank: 280,147 merges for Llama 3. Some tokens cannot be reached by merges at all
(678 in Llama 3); tiktoken finds them by looking up the whole pre-token first, which is what `ignore_merges: true` says.

Reading is strict: a file whose merges are not exactly these, whose pattern is not Llama 3's or which normalises text
would give other ids here than at its home, so it is refused with the reason.

Source: transformers' conversion of tiktoken files (behaviour), the published Llama 3 files (shape).
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from puna.core.errors import CorruptError, UsageError
from puna.core.files import atomic_open, read_json, write_json
from puna.tokenizer.ranks import Ranks, check_ranks
from puna.tokenizer.specials import COUNT, Specials
from puna.tokenizer.split import PATTERN

MODEL_MAX_LENGTH = 131_072
# What `chat_format.render` gives, as text; the tests hold the two together.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# Byte-level BPE files spell bytes as printable characters: GPT-2's table.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_TO_CHAR = {byte: chr(byte) for byte in _PRINTABLE}
_BYTE_TO_CHAR |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _BYTE_TO_CHAR)}
_SPELL = str.maketrans({chr(byte): char for byte, char in _BYTE_TO_CHAR.items()})
_CHAR_TO_BYTE = {char: byte for byte, char in _BYTE_TO_CHAR.items()}


def spell(token: bytes) -> str:
    """Spell bytes in GPT-2's printable alphabet: `b' the' -> 'Ġthe'`."""
    return token.decode("latin-1").translate(_SPELL)


def unspell(text: str) -> bytes:
    """The bytes of a spelt token; raises `KeyError` for a character outside the alphabet."""
    return bytes([_CHAR_TO_BYTE[char] for char in text])


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All merges of a rank vocabulary, in order of priority.

    Args:
        ranks: Bytes -> rank.

    Returns:
        Pairs of tokens whose joined bytes are a token.
    """
    by_rank = sorted(ranks, key=ranks.__getitem__)
    merges: list[tuple[bytes, bytes]] = []
    for token in by_rank:
        splits = []
        for cut in range(1, len(token)):
            left = ranks.get(token[:cut])
            if left is not None:
                right = ranks.get(token[cut:])
                if right is not None:
                    splits.append((left, right))
        merges.extend((by_rank[left], by_rank[right]) for left, right in sorted(splits))
    return merges


def to_json(ranks: Mapping[bytes, int], specials: Specials | None) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Args:
        ranks: Bytes -> rank.
        specials: The special tokens, or None for a tokenizer that knows ordinary text alone.

    Returns:
        A JSON object. With specials, `tokenizer(text)` in transformers opens with `<|begin_of_text|>`, as Llama 3's.
    """
    by_rank = sorted(ranks, key=ranks.__getitem__)
    added = [] if specials is None else [_added_token(i, name) for name, i in specials.ids.items()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None if specials is None else _bos_first(specials),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spell(token): rank for rank, token in enumerate(by_rank)},
            "merges": [[spell(left), spell(right)] for left, right in merges_of(ranks)],
        },
    }


def write_folder(folder: Path, ranks: Ranks, specials: Specials) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    with atomic_open(folder / "tokenizer.json") as file:
        json.dump(to_json(ranks, specials), file, ensure_ascii=False, indent=1)
        file.write("\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": specials.name(specials.bos),
            "eos_token": specials.name(specials.eot),
            "pad_token": specials.name(specials.pad),
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": MODEL_MAX_LENGTH,
        },
    )


def read_tokenizer_json(path: Path) -> tuple[Ranks, Specials]:
    """Read a `tokenizer.json` of Llama 3's shape.

    Args:
        path: The file.

    Returns:
        Ranks and special tokens that give the file's own ids for every text.

    Raises:
        MissingError: There is no such file.
        CorruptError: It is not JSON, or not a tokenizer.
        UsageError: It is a tokenizer of another kind; the message says what differs.
    """
    content = read_json(path)
    try:
        model = content["model"]
        if model.get("type") != "BPE":
            raise UsageError(f"{path} is a {model.get('type')} tokenizer; only byte-level BPE of Llama 3's shape fits")
        _check_split(path, content)
        added = {entry["id"]: entry["content"] for entry in content["added_tokens"]}
        ranks = {unspell(text): rank for text, rank in model["vocab"].items() if rank not in added}
        check_ranks(ranks, where=str(path))
        _check_merges(path, model, ranks)
        names = [added[len(ranks) + offset] for offset in range(COUNT)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} is not a Llama 3 tokenizer.json: {type(error).__name__} {error}. It needs a byte-level BPE model "
            f"with {COUNT} special tokens after it."
        ) from error
    return ranks, Specials.of(len(ranks), names)


def _added_token(token_id: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def _bos_first(specials: Specials) -> dict[str, Any]:
    name = specials.name(specials.bos)
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": sequence, "type_id": type_id}} for sequence, type_id in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [specials.bos], "tokens": [name]}},
    }


def _check_split(path: Path, content: dict[str, Any]) -> None:
    if content.get("normalizer"):
        raise UsageError(
            f"{path} normalises text before splitting ({content['normalizer'].get('type')}); Llama 3 does not"
        )
    stages = content["pre_tokenizer"].get("pretokenizers") or [content["pre_tokenizer"]]
    patterns = [stage["pattern"].get("Regex") for stage in stages if stage["type"] == "Split"]
    byte_level = [stage for stage in stages if stage["type"] == "ByteLevel"]
    if patterns != [PATTERN] or len(byte_level) != 1 or byte_level[0].get("use_regex", True):
        raise UsageError(f"{path} does not split text as Llama 3 does; its ids cannot be reproduced here")
    if byte_level[0].get("add_prefix_space"):
        raise UsageError(f"{path} puts a space before every text, Llama 3 does not")


def _check_merges(path: Path, model: dict[str, Any], ranks: Ranks) -> None:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    found = [(unspell(left), unspell(right)) for left, right in pairs]
    joined = [ranks.get(left + right, -1) for left, right in found]
    in_order = all(a <= b for a, b in pairwise(joined))
    if not in_order or set(found) != set(merges_of(ranks)):
        raise UsageError(
            f"{path} has {len(found)} merges that are not those of a rank vocabulary (that would be "
            f"{len(merges_of(ranks))}), so some ids would differ. Load its tiktoken ranks file, if it has one."
        )
    if not model.get("ignore_merges", False) and (token := _unreachable(ranks)) is not None:
        raise UsageError(
            f"{path} says ignore_merges: false, but merges never reach the token {token!r}; "
            "ranks would give it another id. Set ignore_merges to true if that is what its model was trained with."
        )


def _unreachable(ranks: Ranks) -> bytes | None:
    for token in ranks:
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 1:
            joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            best = min(joined)
            if best == len(ranks):
                return token
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None
