"""What quantization-aware training leads to: a model folder whose weights are the codes that were trained for.

    model.safetensors        the values that the codes stand for, so that every reader has the trained weights
    quantized.safetensors    {matrix}.codes int8 [E, D] and {matrix}.scales [E, G], by Hugging Face's names
    quantization.json        type, group size, and how inputs are rounded

Quantizing the values of `model.safetensors` again would give other scales; the codes are the ones to take.
"""

from pathlib import Path

import torch
from torch import Tensor

from puna.checkpoint import huggingface
from puna.checkpoint.card import Card
from puna.checkpoint.format import MAX_SHARD_BYTES, cut, write_content
from puna.checkpoint.safetensors_file import Entry, SafetensorsFile, Written, write_file
from puna.checkpoint.whole import write_whole
from puna.core.files import need_free_space, write_json
from puna.model.fake_quantization import QuantizationConfig, dequantize_weight, quantize_weight
from puna.model.projection import projections
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer

FILE = "quantized.safetensors"
SETTINGS = "quantization.json"


@torch.no_grad()
def save_quantized(
    folder: Path | str,
    model: Transformer,
    quantization: QuantizationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    card: Card | None = None,
) -> str:
    """Round the blocks' matrices of a model in place, and write codes and values as a sealed folder.

    Args:
        folder: Where; what was there is replaced.
        model: Trained for this quantization (or not: then this is rounding to nearest).
        quantization: How.
        tokenizer: Its tokenizer.
        card: What the model card says.

    Returns:
        The folder's fingerprint.
    """
    parts_of = dict(huggingface.tensor_map(model.config))
    tensors: dict[str, Tensor] = {}
    for name, projection in projections(model.layers):
        codes, scales = quantize_weight(projection.weight, quantization)
        projection.weight.copy_(dequantize_weight(codes, scales))
        parts = parts_of[f"layers.{name}.weight"]
        for (part, own_codes), (_, own_scales) in zip(cut(codes, parts), cut(scales, parts), strict=True):
            stem = part.name.removesuffix(".weight")
            tensors |= {f"{stem}.scales": own_scales.contiguous(), f"{stem}.codes": own_codes.contiguous()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))  # wide types first
    need_free_space(folder, sum(p.nbytes for p in model.parameters()) + sum(t.nbytes for t in ordered.values()))

    def write(temporary: Path) -> dict[str, Written]:
        write_json(temporary / SETTINGS, quantization.model_dump(mode="json"))
        entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in ordered.items()]
        written = {FILE: write_file(temporary / FILE, entries, (t.cpu() for t in ordered.values()))}
        own = write_content(
            temporary, model, model.config, tokenizer=tokenizer, card=card, max_shard_bytes=MAX_SHARD_BYTES
        )
        return {**written, **own}

    return write_whole(Path(folder), write, kind="checkpoint")


def read_codes(folder: Path | str) -> dict[str, Tensor]:
    """Codes and scales by matrix: `{"model.layers.0.self_attn.q_proj.codes": ...}`."""
    file = SafetensorsFile(Path(folder) / FILE)
    try:
        return {name: file.read(name) for name in file.entries}
    finally:
        file.close()
