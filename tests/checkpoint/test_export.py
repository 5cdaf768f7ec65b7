"""A model of any layout streams into a Hugging Face folder, value by value the same, through a few rows at a time."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from puna.checkpoint import tensors
from puna.checkpoint.export import export
from puna.checkpoint.format import load_model, save_model
from puna.checkpoint.layout import Layout, Place, Stored
from puna.checkpoint.safetensors_file import Entry, write_file
from puna.checkpoint.tensors import TensorReader
from puna.core import files
from puna.core.errors import CorruptError

from .conftest import tiny_model


def in_pieces(folder, out, cut):
    """Rewrite a model's folder as a checkpoint in pieces: `cut(name, shape)` gives boxes as (offsets, sizes)."""
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored, parts = {}, {0: [], 1: []}
    with TensorReader.of_folder(folder) as reader:
        for name in reader:
            whole, places = reader.read(name), []
            for number, (offsets, sizes) in enumerate(cut(name, whole.shape)):
                box = whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))].contiguous()
                key = f"{name}[{number}]"
                parts[number % 2].append((Entry(key, box.dtype, tuple(sizes)), box))
                file = f"weights-0000{number % 2 + 1}-of-00002.safetensors"
                places.append(Place(tuple(offsets), tuple(sizes), file, key))
            stored[name] = Stored(whole.dtype, tuple(whole.shape), tuple(places))
    for number, boxes in parts.items():
        write_file(out / f"weights-0000{number + 1}-of-00002.safetensors", [e for e, _ in boxes], [b for _, b in boxes])
    Layout(stored).write(out)
    files.seal(out, kind="checkpoint")


def halves(dim):
    def cut(name, shape):
        if len(shape) <= dim:
            return [((0,) * len(shape), shape)]
        first = shape[dim] // 2 - 1  # unequal on purpose
        sizes = [[*shape], [*shape]]
        sizes[0][dim], sizes[1][dim] = first, shape[dim] - first
        offsets = [[0] * len(shape), [0] * len(shape)]
        offsets[1][dim] = first
        return list(zip(offsets, sizes, strict=True))

    return cut


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_pieces_become_the_folder_that_the_whole_model_makes(dim, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 1000)  # a few rows
    model = tiny_model()
    save_model(tmp_path / "whole", model, model.config)
    in_pieces(tmp_path / "whole", tmp_path / "pieces", halves(dim))
    export(tmp_path / "pieces", tmp_path / "out", dtype=dtype, max_shard_bytes=40_000)
    save_model(tmp_path / "expected", model, model.config, dtype=dtype, max_shard_bytes=40_000)
    for path in sorted((tmp_path / "expected").glob("model*")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    files.verify(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype or torch.float32)
    assert torch.equal(theirs.model.embed_tokens.weight, model.embedding.weight.to(dtype or torch.float32))
    loaded, _ = load_model(tmp_path / "pieces")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_flipped_bit_in_a_piece_stops_the_export_and_leaves_nothing(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "whole", model, model.config)
    in_pieces(tmp_path / "whole", tmp_path / "pieces", halves(0))
    path = tmp_path / "pieces" / "weights-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="weights-00002"):
        export(tmp_path / "pieces", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layout_that_does_not_fit_its_files_is_refused(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "whole", model, model.config)
    in_pieces(tmp_path / "whole", tmp_path / "pieces", halves(0))
    (tmp_path / "pieces" / files.SEAL).unlink()
    path = tmp_path / "pieces" / "layout.json"
    values = json.loads(path.read_text())
    values["tensors"]["model.norm.weight"]["chunks"][0]["key"] = "ghost"
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="ghost"):
        load_model(tmp_path / "pieces")
