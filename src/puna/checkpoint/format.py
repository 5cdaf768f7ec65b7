"""The checkpoint: a folder that every other tool opens, and how a path leads to one.

    config.json               the shape, as transformers reads and writes it
    model.safetensors         or shards beside model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, tokenizer.model
    generation_config.json    which tokens end an answer
    README.md                 the model card
    checksums.json            the seal

A path may be such a folder, whoever made it; a run folder, which stands for its finished `model/` or else its newest
whole checkpoint; or Meta's layout (`meta.py`). A checkpoint that many ranks wrote has its weights in pieces and a
`layout.json`; it is read all the same (`tensors.py`). Weights are read tensor by tensor into place; `export.py`
streams a model of any size from one folder into another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from puna.checkpoint import card as cards
from puna.checkpoint import huggingface, meta, peft
from puna.checkpoint.card import Card
from puna.checkpoint.finding import newest_whole
from puna.checkpoint.safetensors_file import Entry, Written
from puna.checkpoint.tensors import TensorReader, dtype_name, write_sharded
from puna.checkpoint.whole import write_whole
from puna.core.errors import CorruptError, MissingError, PunaError
from puna.core.files import is_sealed, need_free_space, read_json, write_json
from puna.lineage import artifact
from puna.model.config import ModelConfig
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

MAX_SHARD_BYTES = 5 << 30


@dataclass(frozen=True)
class Found:
    """Where a path led.

    Attributes:
        folder: The model's folder.
        layout: What it holds.
    """

    folder: Path
    layout: Literal["huggingface", "meta", "adapter"]


def resolve(path: Path | str) -> Found:
    """Find the model that a path stands for.

    Args:
        path: A Hugging Face folder, a run folder, a `checkpoints/` folder or Meta's layout.

    Raises:
        MissingError: No model is there.
        CorruptError: There are checkpoints only, and all are damaged.
    """
    path = Path(path)
    if path.is_file():
        raise MissingError(f"{path} is a file; name the folder that holds the model: {path.parent}")
    if not path.is_dir():
        raise MissingError(f"there is no model at {path}: no such folder")
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return Found(folder, "huggingface")
        if (folder / "params.json").is_file():
            return Found(folder, "meta")
        if (folder / peft.CONFIG).is_file():
            return Found(folder, "adapter")
    for folder in (path, path / "checkpoints"):
        latest = newest_whole(folder)
        if latest is not None:
            return Found(latest, "adapter" if (latest / peft.CONFIG).is_file() else "huggingface")
    raise MissingError(
        f"there is no model at {path}: it has no config.json (Hugging Face), no params.json (Meta), no "
        f"{peft.CONFIG} (an adapter), no model/ and no checkpoints/. If a run is to make it, run that first."
    )


def load_config(path: Path | str, *, base: Path | str | None = None) -> ModelConfig:
    """The shape of the model at a path, without its weights."""
    found = resolve(path)
    if found.layout == "meta":
        return meta.load_config(found.folder)
    if found.layout == "adapter":
        return load_config(peft.base_of(found.folder, base))
    return read_config(found.folder)


def read_config(folder: Path) -> ModelConfig:
    """The shape that a Hugging Face folder names."""
    where = folder / "config.json"
    values = read_json(where)
    if not isinstance(values, dict):
        raise CorruptError(f"{where} holds no table of settings")
    return huggingface.from_json(values, where=str(where))


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    base: Path | str | None = None,
) -> tuple[Transformer, ModelConfig]:
    """Load a model; an adapter is merged into its base.

    Args:
        path: See `resolve`.
        dtype: Of the weights; None keeps that of the files.
        device: Where they go.
        base: For an adapter: the base, where it is not found by what the adapter says.

    Returns:
        The model and its shape.

    Raises:
        MissingError: There is no model, or a file of it is missing.
        CorruptError: A file is not what its checksum or its format says.
        PunaError: It is not a Llama model, or its tensors do not fit its config.
    """
    found = resolve(path)
    if is_sealed(found.folder):
        artifact.check(found.folder)
    if found.layout == "meta":
        config, state = meta.load_state(found.folder, dtype=dtype, device=device)
    elif found.layout == "adapter":
        config = load_config(path, base=base)
        state = {n: t.to(device, dtype or t.dtype) for n, t in read_weights(path, config, base=base)}
    else:
        config = read_config(found.folder)
        with TensorReader.of_folder(found.folder) as reader:
            state = dict(_read_state(reader, config, found.folder, dtype=dtype, device=device))
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state, assign=True)
    return model, config


def read_weights(
    path: Path | str, config: ModelConfig, *, base: Path | str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every whole parameter of a model that a run begins with or goes on from, one by one, as stored.

    Args:
        path: See `resolve`.
        config: The shape that is expected.
        base: Of an adapter, which is merged into it.

    Raises:
        PunaError: The model at the path has another shape.
    """
    found = resolve(path)
    if found.layout == "meta":
        check_fits(meta.load_config(found.folder), config, where=found.folder)
        yield from meta.load_state(found.folder, dtype=None, device="cpu")[1].items()
        return
    if found.layout == "adapter":
        adapter = peft.read_adapter(found.folder)
        yield from peft.merged(read_weights(peft.base_of(found.folder, base), config), adapter, config)
        return
    check_fits(read_config(found.folder), config, where=found.folder)
    with TensorReader.of_folder(found.folder) as reader:
        yield from _read_state(reader, config, found.folder, dtype=None, device="cpu")


def _read_state(
    reader: TensorReader, config: ModelConfig, folder: Path, *, dtype: torch.dtype | None, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    check_shapes({name: reader.shape(name) for name in reader}, config, where=folder)
    for ours, parts in huggingface.tensor_map(config):
        tensors = [reader.read(part.name) for part in parts]
        if any(not t.is_floating_point() for t in tensors):
            raise PunaError(
                f"{reader.path(parts[0].name)}: {parts[0].name} has dtype {tensors[0].dtype}: not a float type"
            )
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        yield ours, whole.to(device=device, dtype=dtype or tensors[0].dtype)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, *, where: Path) -> None:
    """Compare the tensors of a folder with its config.

    Raises:
        PunaError: Some are missing, have another shape, or belong to no Llama model; all are named, up to a few.
    """
    expected = {part.name: part.shape for _, parts in huggingface.tensor_map(config) for part in parts}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [
        f"{name} has shape {list(shapes[name])}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems += [
        f"{name} belongs to no Llama model"
        for name in shapes
        if name not in expected and not huggingface.is_ignored(name, config)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise PunaError(f"the weights in {where} do not fit its config.json: {'; '.join(problems[:5])}{more}.")


_NOUNS = {
    "dim": "width",
    "n_layers": "layers",
    "n_heads": "query heads",
    "n_kv_heads": "key and value heads",
    "ffn_dim": "feed-forward width",
    "vocab_size": "tokens of vocabulary",
}


def check_fits(found: ModelConfig, asked: ModelConfig, *, where: Path | str) -> None:
    """Refuse a checkpoint whose shape is not what a recipe asks for.

    Raises:
        PunaError: What differs, and what to set.
    """
    for name in ModelConfig.model_fields:
        has, wants = getattr(found, name), getattr(asked, name)
        if has != wants:
            noun = _NOUNS.get(name)
            what = f"{has} {noun}" if noun else f"{name} {has}"
            raise PunaError(
                f"checkpoint {where} has {what}, the recipe asks for {wants}. Set model.{name}={has}, or "
                "begin again with --fresh."
            )


def load_tokenizer(path: Path | str, *, base: Path | str | None = None) -> Tokenizer:
    """The tokenizer beside the model at a path; an adapter that has none uses its base's.

    Raises:
        MissingError: There is none.
    """
    found = resolve(path)
    folder = found.folder
    if found.layout == "adapter" and not (folder / "tokenizer.json").is_file():
        return load_tokenizer(peft.base_of(folder, base))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise MissingError(f"{folder} has no tokenizer.json and no tokenizer.model. Copy the model's tokenizer there.")
    return Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else folder / "tokenizer.model")


def save_model(
    folder: Path | str,
    model: Transformer,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer | None = None,
    card: Card | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Write a sealed checkpoint folder, whole or not at all.

    Args:
        folder: Where; what was there is replaced.
        model: The model.
        config: Its shape.
        tokenizer: Its tokenizer.
        card: What the model card says beside the shape.
        dtype: Of the weights in the file; None keeps the model's.
        max_shard_bytes: Limit of one weights file.

    Returns:
        The folder's fingerprint.

    Raises:
        PunaError: The disk is too small, or the tokenizer has more tokens than the model.
    """
    dtype = dtype or model.dtype
    folder = Path(folder)
    need_free_space(folder, config.parameters() * dtype.itemsize + (64 << 20))
    return write_whole(
        folder,
        lambda temporary: write_content(
            temporary, model, config, tokenizer=tokenizer, card=card, dtype=dtype, max_shard_bytes=max_shard_bytes
        ),
        kind="checkpoint",
    )


def write_content(
    folder: Path,
    model: Transformer,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer | None,
    card: Card | None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Written]:
    """Write all files of a model but the seal into a folder that exists, and return the checksums of the weights.

    Arguments as in `save_model`.
    """
    dtype = dtype or model.dtype
    write_side(folder, config, tokenizer=tokenizer, card=card, dtype=dtype)
    state = model.state_dict()
    parts = {
        part.name: piece for ours, parts in huggingface.tensor_map(config) for part, piece in cut(state[ours], parts)
    }
    return write_sharded(
        folder,
        [Entry(name, dtype, tuple(piece.shape)) for name, piece in parts.items()],
        lambda name: [parts[name].to(device="cpu", dtype=dtype)],
        max_shard_bytes=max_shard_bytes,
    )


def write_side(
    folder: Path, config: ModelConfig, *, tokenizer: Tokenizer | None, card: Card | None, dtype: torch.dtype
) -> None:
    """Write the files beside the weights: config, tokenizer, how an answer ends, the card.

    Arguments as in `save_model`.

    Raises:
        PunaError: The tokenizer has more tokens than the model.
    """
    ends: tuple[int, ...] = ()
    ids: dict[str, int] = {}
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise PunaError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}. Use the "
                f"tokenizer that the model was trained with, or set model.vocab_size={tokenizer.vocab_size}."
            )
        special = tokenizer.specials
        ends, ids = (special.end_of_text, special.eot), {"bos": special.bos, "pad": special.pad}
        tokenizer.save(folder)
        write_json(
            folder / "generation_config.json",
            {"bos_token_id": special.bos, "eos_token_id": list(ends), "pad_token_id": special.pad},
        )
    write_json(folder / "config.json", huggingface.to_json(config, dtype=dtype_name(dtype), eos=ends, **ids))
    (folder / "README.md").write_text(cards.render(card or Card(), config, dtype=dtype_name(dtype)), encoding="utf-8")


def cut(fused: Tensor, parts: Sequence[huggingface.Part]) -> Iterator[tuple[huggingface.Part, Tensor]]:
    """The logical tensors of a fused one, as views."""
    return zip(parts, fused.detach().split([part.rows for part in parts]), strict=True)


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder, if it has one."""
    there = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return load_tokenizer(folder) if there else None
