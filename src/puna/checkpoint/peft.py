"""Adapters as folders in PEFT's format: PEFT loads ours onto transformers' Llama, and we load what PEFT trained.

    adapter_config.json         kind, rank, scale, matrices, and the path of the base
    adapter_model.safetensors   A, B and magnitudes by PEFT's names
    base.json                   of ours only: the base's fingerprint, and whether its blocks are packed (NF4)
    tokenizer.json ...          as in every checkpoint
    README.md, checksums.json

    layers.i.attention.qkv.adapters.q_proj.A    base_model.model.model.layers.i.self_attn.q_proj.lora_A.weight
                                          .B    ....lora_B.weight
                                  .magnitude    ....lora_magnitude_vector

The folder says which base it belongs to by the path that a person gave: the one path inside an artifact, because PEFT
asks for it. A base is looked for there, then where the run's lineage has it. An adapter of a packed base is exact on
the packed base, so that is what it is merged into.

Source: huggingface/peft, `LoraConfig` and the layout of its files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.checkpoint import card as cards
from puna.checkpoint import huggingface
from puna.checkpoint.card import Card
from puna.checkpoint.layout import FILE as LAYOUT
from puna.checkpoint.layout import STATE
from puna.checkpoint.safetensors_file import Entry, SafetensorsFile, Written, write_file
from puna.checkpoint.tensors import TensorReader
from puna.checkpoint.whole import write_whole
from puna.core.errors import MissingError, PunaError
from puna.core.files import fingerprint, is_sealed, read_json, write_json
from puna.lineage import artifact
from puna.model.adapter_config import ALL_LINEAR, Adapted, AdapterConfig
from puna.model.config import ModelConfig
from puna.model.nf4 import NF4
from puna.model.projection import merge, projections
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
_PREFIX = "base_model.model."
_KINDS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_PLAIN = {  # settings that our adapters do not have, with the values that mean their absence
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
}
_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # they change the base when training begins


@dataclass(frozen=True)
class Adapter:
    """An adapter as its folder holds it.

    Attributes:
        config: Its settings.
        tensors: A, B and magnitude by the name of the logical matrix: `{"model.layers.0.self_attn.q_proj.weight":
            {"A": ..., "B": ...}}`.
        packed: Whether the blocks of its base are packed; then with double quantization or without.
    """

    config: AdapterConfig
    tensors: Mapping[str, Mapping[str, Tensor]]
    packed: bool


# -- names


def peft_names(model: Transformer) -> dict[str, str]:
    """PEFT's name of every tensor of a model's adapters, by ours."""
    matrices = {ours: [part.name for part in parts] for ours, parts in huggingface.tensor_map(model.config)}
    found = {}
    for name, projection in projections(model):
        if f"{name}.weight" not in matrices:
            continue  # a critic's
        for part, logical in zip(projection.parts, matrices[f"{name}.weight"], strict=True):
            adapter = projection.adapter_of(part)
            if adapter is not None:
                stem = _PREFIX + logical.removesuffix("weight")
                found |= {f"{name}.adapters.{part}.{k}": stem + _KINDS[k] for k, _ in adapter.named_parameters()}
    return found


def _split_name(name: str) -> tuple[str, str] | None:
    """The logical matrix and the kind of one of PEFT's tensors."""
    for kind, ending in _KINDS.items():
        if name.startswith(_PREFIX) and name.endswith(f".{ending}"):
            return name.removeprefix(_PREFIX).removesuffix(ending) + "weight", kind
    return None


# -- writing


def save_adapter(
    folder: Path | str, model: Transformer, *, tokenizer: Tokenizer | None = None, card: Card | None = None
) -> str:
    """Write a model's adapters as a sealed folder, whole or not at all; the base is not written.

    Returns:
        The folder's fingerprint.
    """
    own = dict(model.named_parameters())
    tensors = {theirs: own[ours].detach() for ours, theirs in sorted(peft_names(model).items(), key=lambda x: x[1])}

    def write(temporary: Path) -> dict[str, Written]:
        write_adapter_side(temporary, model, tokenizer=tokenizer, card=card)
        entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
        return {WEIGHTS: write_file(temporary / WEIGHTS, entries, (t.cpu() for t in tensors.values()))}

    return write_whole(Path(folder), write, kind="adapter")


def write_adapter_side(folder: Path, model: Transformer, *, tokenizer: Tokenizer | None, card: Card | None) -> None:
    """Write the files beside the adapter's tensors."""
    adapted = model.adapter
    assert adapted is not None, "the model has adapters"
    write_json(folder / CONFIG, to_json(adapted, model.config))
    packed = adapted.config.kind == "qlora"
    quantization = {"kind": "nf4", "double": adapted.config.double_quantization} if packed else None
    write_json(folder / BASE, {"fingerprint": adapted.base_fingerprint, "quantization": quantization})
    if tokenizer is not None:
        tokenizer.save(folder)
    text = cards.render_adapter(card or Card(), model.config, adapted)
    (folder / "README.md").write_text(text, encoding="utf-8")


def to_json(adapted: Adapted, shape: ModelConfig) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    config = adapted.config
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {
        "base_model_name_or_path": adapted.base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": list(config.targets),
        "task_type": "CAUSAL_LM" if shape.head == "tokens" else "SEQ_CLS",
        "use_dora": config.kind == "dora",
        "use_rslora": config.rslora,
    }


# -- reading


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter, of ours or of PEFT, or from a checkpoint of a run.

    Raises:
        MissingError: A file is not there.
        PunaError: It is an adapter of another kind, or has parts that ours do not have.
    """
    values = read_json(folder / CONFIG)
    own = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    quantization = own.get("quantization") or {}
    tensors: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, tensor in _tensors(folder):
        found = _split_name(name)
        if found is None:
            problems.append(name)
            continue
        tensors.setdefault(found[0], {})[found[1]] = tensor
    if problems:
        raise PunaError(f"{folder} holds {problems[0]}, which is no part of a LoRA adapter of a Llama model.")
    if not tensors:
        raise PunaError(f"{folder} holds no adapter's tensors.")
    config = from_json(values, tensors, where=folder / CONFIG, quantization=quantization)
    return Adapter(config, tensors, bool(quantization))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of an adapter by PEFT's names."""
    if (folder / LAYOUT).is_file():  # a checkpoint of a run: our names, with the training state
        with TensorReader.of_folder(folder, below=f"{STATE}own/") as reader:
            for name in reader:
                if ".adapters." in name and not name.startswith("critic."):
                    yield _peft_name(name), reader.read(name)
        return
    if not (folder / WEIGHTS).is_file():
        hint = " adapter_model.bin is pickled and not read." if (folder / "adapter_model.bin").is_file() else ""
        raise MissingError(f"{folder} has no {WEIGHTS}.{hint}")
    file = SafetensorsFile(folder / WEIGHTS)
    try:
        for name in file.entries:
            yield name, file.read(name)
    finally:
        file.close()


def _peft_name(ours: str) -> str:
    stem, part, kind = ours.rsplit(".", 2)
    module = stem.removesuffix(".adapters")
    if part == "lm_head":
        return f"{_PREFIX}lm_head.{_KINDS[kind]}"
    layer = module.split(".")[1]
    room = "mlp" if ".feed_forward." in module else "self_attn"
    return f"{_PREFIX}model.layers.{layer}.{room}.{part}.{_KINDS[kind]}"


def from_json(
    values: Mapping[str, Any], names: Mapping[str, Any], *, where: Path, quantization: Mapping[str, Any]
) -> AdapterConfig:
    """The settings that an `adapter_config.json` describes.

    Args:
        values: Its content.
        names: The matrices that have tensors.
        where: The file, for messages.
        quantization: From `base.json`.

    Raises:
        PunaError: It is no LoRA, or one with parts that ours do not have.
    """
    if values.get("peft_type") != "LORA":
        raise PunaError(f"{where} describes a {values.get('peft_type')!r} adapter; allowed is 'LORA'.")
    problems = [
        f"{key} is {values[key]!r}" for key, plain in _PLAIN.items() if key in values and values[key] not in plain
    ]
    begin = str(values.get("init_lora_weights", True))
    if begin.startswith(_OTHER_BASES):
        problems.append(f"init_lora_weights is {begin!r}, which changes the base: convert it with PEFT's own means")
    if problems:
        raise PunaError(f"{where} cannot be read as an adapter: {'; '.join(problems)}.")
    found = {name.split(".")[-2] for name in names}
    targets = [target for target in (*ALL_LINEAR, "lm_head") if target in found]
    if unknown := found - set(targets):
        raise PunaError(f"{where} adapts {', '.join(sorted(unknown))}; allowed are the linear maps of a Llama model.")
    return AdapterConfig.model_validate(
        {
            "kind": "qlora" if quantization else "dora" if values.get("use_dora") else "lora",
            "rank": values["r"],
            "alpha": values["lora_alpha"],
            "rslora": bool(values.get("use_rslora")),
            "dropout": 0.0 if "lm_head" in targets else values.get("lora_dropout", 0.0),
            "targets": targets,
            "double_quantization": quantization.get("double", True),
        }
    )


def base_of(folder: Path, base: Path | str | None = None) -> Path:
    """The path of an adapter's base.

    Args:
        folder: The adapter's.
        base: What a person says; None asks the adapter, then the lineage of its run.

    Raises:
        MissingError: It is nowhere.
        PunaError: It is another model than the adapter was trained on.
    """
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    candidates = [Path(base)] if base is not None else [Path(named)] if named else []
    if base is None:
        candidates += list(_lineage_bases(folder))
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        where = base or named
        raise MissingError(
            f"{folder} is an adapter of {where or 'a base that it does not name'}, which is not there. Name the base's "
            "folder with --base FOLDER."
        )
    known = read_json(folder / BASE).get("fingerprint") if (folder / BASE).is_file() else None
    sealed = next((path for path in (found, found / "model") if is_sealed(path)), None)
    if known and sealed is not None and fingerprint(sealed) != known:
        raise PunaError(
            f"{folder} is an adapter of another model than {found}: fingerprints are {known[:12]} and "
            f"{fingerprint(sealed)[:12]}. Name its own base with --base FOLDER."
        )
    return found


def _lineage_bases(folder: Path) -> Iterator[Path]:
    for run in (folder.parent, folder.parent.parent):
        if (run / artifact.RECORD).is_file():
            recorded = read_json(run / artifact.RECORD).get("inputs", {}).get("start_from")
            if recorded:
                yield run / recorded["path"]


@torch.no_grad()
def merged(weights: Iterator[tuple[str, Tensor]], adapter: Adapter, shape: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights of a base with an adapter merged into them, one by one: computed in fp32, rounded to their type.

    Args:
        weights: The base's, by our names.
        adapter: Of that base.
        shape: Of both.

    Raises:
        PunaError: The adapter does not fit.
    """
    parts_of = dict(huggingface.tensor_map(shape))
    left = set(adapter.tensors)
    for name, tensor in weights:
        parts = parts_of[name]
        if adapter.packed and name.startswith("layers.") and tensor.dim() == 2:
            tensor = NF4.of(tensor, double=adapter.config.double_quantization).unpack(tensor.dtype)
        first = 0
        for part in parts:
            if part.name in adapter.tensors:
                rows = tensor.narrow(0, first, part.rows)
                rows.copy_(_merged_part(rows, adapter.tensors[part.name], adapter.config, part.name))
                left.discard(part.name)
            first += part.rows
        yield name, tensor
    if left:
        raise PunaError(f"the adapter has {sorted(left)[0]}, the model has no such matrix.")


def _merged_part(base_ED: Tensor, own: Mapping[str, Tensor], config: AdapterConfig, name: str) -> Tensor:
    wide = torch.promote_types(base_ED.dtype, torch.float32)
    found = {kind: tensor.to(base_ED.device, wide) for kind, tensor in own.items()}
    rows, columns = base_ED.shape
    fits = (
        {"A", "B"} <= set(found)
        and (config.kind == "dora") == ("magnitude" in found)
        and found["A"].shape == (config.rank, columns)
        and found["B"].shape == (rows, config.rank)
    )
    if not fits:
        shapes = {kind: list(tensor.shape) for kind, tensor in own.items()}
        raise PunaError(f"the adapter of {name} has {shapes}, expected rank {config.rank} of [{rows}, {columns}].")
    return merge(base_ED.to(wide), found["A"], found["B"] * config.scale, found.get("magnitude"))
