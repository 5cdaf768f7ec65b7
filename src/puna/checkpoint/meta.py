"""Meta's layout: `params.json`, `consolidated.00.pth` ... and `tokenizer.model`, as Llama models are first published.

Three things differ from a Hugging Face folder. Names. Rotary pairs: Meta turns coordinate 2i with 2i + 1, we turn i
with i + H/2, so the rows of each query and key head are sorted evens first, odds after. And model-parallel shards: each
file holds its rank's rows (wq, wk, wv, w1, w3, output, and the embedding in Llama 3) or columns (wo, w2, and the
embedding in Llama 2), the norms whole. With more ranks than kv heads, neighbouring ranks hold the same kv heads.

Files are read with `weights_only=True`: they can hold tensors, not programs. Reading and writing change no value.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from puna.checkpoint.whole import write_whole
from puna.core.errors import CorruptError, MissingError, PunaError
from puna.core.files import read_json, write_json
from puna.model.config import ModelConfig, RopeScaling
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
_RELEASE_3_CONTEXT, _RELEASE_3_1_CONTEXT = 8_192, 131_072  # params.json does not say how long a context may be


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder of Meta's layout."""
    shards = _open(folder)
    return _config(read_json(folder / "params.json"), shards, folder)


def load_state(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a model.

    Args:
        folder: It has `params.json` and `consolidated.*.pth`.
        dtype: Of the weights; None keeps that of the files.
        device: Where they go.

    Returns:
        Its shape, and its parameters under our names.

    Raises:
        MissingError: A file is missing.
        CorruptError: A file is not what it should be.
        PunaError: The tensors do not fit `params.json`.
    """
    shards = _open(folder)
    config = _config(read_json(folder / "params.json"), shards, folder)
    state = {}
    for ours, parts in _names(config).items():
        tensors = []
        for name, rows, columns in parts:
            tensor = _join([shard[name] for shard in shards], name, rows, columns, folder)
            if name.endswith(("wq.weight", "wk.weight")):
                tensor = _pairs_apart(tensor, config.head_dim)
            tensors.append(tensor)
        whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        state[ours] = whole.to(device=device, dtype=dtype or whole.dtype, copy=True)
    return config, state


def save_meta(
    folder: Path | str, model: Transformer, config: ModelConfig, *, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model in Meta's layout, as one shard, whole or not at all.

    Args:
        folder: Where; what was there is replaced.
        model: The model.
        config: Its shape.
        tokenizer: Written as `tokenizer.model`.
    """
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for ours, parts in _names(config).items():
        pieces = state[ours].detach().cpu().split([rows for _, rows, _ in parts])
        for (name, _, _), piece in zip(parts, pieces, strict=True):
            together = name.endswith(("wq.weight", "wk.weight"))
            # clone: a view would carry the memory of the whole fused matrix into the file
            tensors[name] = _pairs_together(piece, config.head_dim) if together else piece.clone()
    if config.tie_embeddings:
        tensors["output.weight"] = tensors["tok_embeddings.weight"]  # Meta's files always have both

    def write(temporary: Path) -> None:
        write_json(temporary / "params.json", _params(config))
        torch.save(tensors, temporary / "consolidated.00.pth")
        if tokenizer is not None:
            tokenizer.save(temporary)
            for extra in ("tokenizer.json", "tokenizer_config.json"):
                (temporary / extra).unlink(missing_ok=True)

    write_whole(Path(folder), write, kind="meta")


def _names(config: ModelConfig) -> dict[str, list[tuple[str, int, int | None]]]:
    """Our parameters, each with Meta's tensors that it is stacked from: name, rows, columns."""
    width, heads, kv = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    names: dict[str, list[tuple[str, int, int | None]]] = {
        "embedding.weight": [("tok_embeddings.weight", config.vocab_size, width)]
    }
    for i in range(config.n_layers):
        a, f = f"layers.{i}.attention", f"layers.{i}.feed_forward"
        names |= {
            f"layers.{i}.attention_norm.weight": [(f"layers.{i}.attention_norm.weight", width, None)],
            f"{a}.qkv.weight": [
                (f"{a}.wq.weight", heads, width),
                (f"{a}.wk.weight", kv, width),
                (f"{a}.wv.weight", kv, width),
            ],
            f"{a}.output.weight": [(f"{a}.wo.weight", width, heads)],
            f"layers.{i}.feed_forward_norm.weight": [(f"layers.{i}.ffn_norm.weight", width, None)],
            f"{f}.gate_up.weight": [
                (f"{f}.w1.weight", config.ffn_dim, width),
                (f"{f}.w3.weight", config.ffn_dim, width),
            ],
            f"{f}.down.weight": [(f"{f}.w2.weight", width, config.ffn_dim)],
        }
    names["norm.weight"] = [("norm.weight", width, None)]
    if not config.tie_embeddings:
        names["head.weight"] = [("output.weight", config.vocab_size, width)]
    return names


def _open(folder: Path) -> list[dict[str, Tensor]]:
    """The shards in the order of their ranks, mapped, not read."""
    paths = sorted(p for p in folder.glob("consolidated.*.pth") if re.fullmatch(r"consolidated\.\d+\.pth", p.name))
    if not paths:
        raise MissingError(f"{folder} has params.json but no consolidated.00.pth. Fetch the weights too.")
    shards = []
    for rank, path in enumerate(paths):
        if int(path.name.split(".")[1]) != rank:
            raise MissingError(f"{folder} has {path.name} but no consolidated.{rank:02d}.pth: a shard is missing")
        try:
            shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the unpickler raises what it likes on damaged bytes
            raise CorruptError(f"{path} cannot be read as tensors alone: {str(error).splitlines()[0]}") from error
        if not isinstance(shard, dict) or not all(isinstance(t, Tensor) for t in shard.values()):
            raise CorruptError(f"{path} is not a table of tensors")
        shards.append(shard)
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())[0]
            raise CorruptError(f"{path} and {paths[0].name} hold different tensors, for example {odd}")
    return shards


def _config(params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], folder: Path) -> ModelConfig:
    where = folder / "params.json"
    missing = [key for key in ("dim", "n_layers", "n_heads", "norm_eps") if key not in params]
    if missing:
        raise PunaError(f"{where} lacks {', '.join(missing)}: it describes no Llama model")
    first, n = shards[0], len(shards)
    try:
        embedding, w1 = first["tok_embeddings.weight"], first["layers.0.feed_forward.w1.weight"]
    except KeyError as error:
        raise PunaError(f"the weights in {folder} lack {error}") from error
    by_rows = embedding.shape[1] == params["dim"]
    scaled = bool(params.get("use_scaled_rope", False))
    try:
        return ModelConfig(
            dim=params["dim"],
            n_layers=params["n_layers"],
            n_heads=params["n_heads"],
            n_kv_heads=params.get("n_kv_heads") or params["n_heads"],
            head_dim=params.get("head_dim") or 0,
            ffn_dim=w1.shape[0] * n,
            vocab_size=embedding.shape[0] * (n if by_rows else 1),
            max_seq_len=params.get("max_seq_len") or (_RELEASE_3_1_CONTEXT if scaled else _RELEASE_3_CONTEXT),
            rope_theta=params.get("rope_theta", 10_000.0),  # Llama 2 does not write it
            rope_scaling=_scaling(params) if scaled else None,
            norm_eps=params["norm_eps"],
            tie_embeddings=all(
                "output.weight" not in shard or torch.equal(shard["output.weight"], shard["tok_embeddings.weight"])
                for shard in shards
            ),
        )
    except ValidationError as error:
        reasons = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
        raise PunaError(f"{where} describes an impossible model: {reasons}.") from error


def _scaling(params: Mapping[str, Any]) -> RopeScaling:
    return RopeScaling(
        factor=params.get("rope_scale_factor") or 8.0,  # Llama 3.1 does not write it
        low_freq_factor=params.get("low_freq_factor") or 1.0,
        high_freq_factor=params.get("high_freq_factor") or 4.0,
        original_max_seq_len=params.get("original_max_seq_len") or 8_192,
    )


def _params(config: ModelConfig) -> dict[str, Any]:
    multiple_of, multiplier = _feed_forward(config)
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        params["rope_scale_factor"] = scaling.factor
        standard = RopeScaling(factor=scaling.factor)
        for key in ("low_freq_factor", "high_freq_factor", "original_max_seq_len"):
            if getattr(scaling, key) != getattr(standard, key):
                params[key] = getattr(scaling, key)
    if config.head_dim * config.n_heads != config.dim:
        params["head_dim"] = config.head_dim
    if config.max_seq_len != (_RELEASE_3_1_CONTEXT if scaling else _RELEASE_3_CONTEXT):
        params["max_seq_len"] = config.max_seq_len
    return params


def _feed_forward(config: ModelConfig) -> tuple[int, float]:
    """`multiple_of` and `ffn_dim_multiplier` from which Meta's formula gives our ffn_dim.

    The formula: round int(multiplier * int(8 dim / 3)) up to a multiple of `multiple_of`.
    """
    plain = int(2 * (4 * config.dim) / 3)
    multiple_of = math.gcd(config.ffn_dim, 4_096)
    for digits in range(1, 12):
        # aim at the middle of the last step, so that the rounding up lands on ffn_dim
        multiplier = round((config.ffn_dim - (multiple_of - 1) / 2) / plain, digits)
        if -(-int(multiplier * plain) // multiple_of) * multiple_of == config.ffn_dim:
            return multiple_of, multiplier
    raise AssertionError(f"no multiplier gives ffn_dim {config.ffn_dim}")


def _join(tensors: Sequence[Tensor], name: str, rows: int, columns: int | None, folder: Path) -> Tensor:
    """One tensor from its shards."""
    expected = (rows,) if columns is None else (rows, columns)
    if columns is None:
        joined = tensors[0]
    elif name.endswith(_BY_COLUMNS) or (name == "tok_embeddings.weight" and tensors[0].shape[1] != columns):
        joined = torch.cat(list(tensors), dim=1) if len(tensors) > 1 else tensors[0]
    else:
        # more ranks than kv heads: neighbours hold copies
        copies = max(1, sum(t.shape[0] for t in tensors) // rows) if name.endswith(("wk.weight", "wv.weight")) else 1
        joined = torch.cat(list(tensors)[::copies]) if len(tensors) > 1 else tensors[0]
    if tuple(joined.shape) != expected:
        raise PunaError(
            f"the weights in {folder} do not fit its params.json: {name} has shape {list(joined.shape)} over "
            f"{len(tensors)} shard{'s' if len(tensors) != 1 else ''}, expected is {list(expected)}."
        )
    return joined


def _pairs_apart(weight: Tensor, head_dim: int) -> Tensor:
    """Meta's order of a head's rows to ours: evens first, odds after."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _pairs_together(weight: Tensor, head_dim: int) -> Tensor:
    """Our order of a head's rows to Meta's: a pair side by side."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
