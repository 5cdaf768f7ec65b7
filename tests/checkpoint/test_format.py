"""A path leads to a model, and what is wrong with a folder is said with its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.checkpoint.card import Card
from puna.checkpoint.format import (
    check_fits,
    load_config,
    load_model,
    load_tokenizer,
    read_weights,
    resolve,
    save_model,
    write_side,
)
from puna.checkpoint.logical import logical, segments_of
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.core import files
from puna.core.errors import CorruptError, MissingError, PunaError, UsageError

from .conftest import tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "m", model, model.config)
    return tmp_path / "m"


def _unseal(folder):
    (folder / files.SEAL).unlink()


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    _unseal(folder)


def test_equal_models_give_equal_fingerprints_and_another_seed_does_not(tmp_path):
    card = Card(name="tiny", facts={"steps": "3"}, made_from={"shards": "ab"})
    prints = []
    for i, seed in enumerate((0, 0, 1)):
        model = tiny_model(seed=seed)
        prints.append(save_model(tmp_path / str(i), model, model.config, card=card))
    assert prints[0] == prints[1] != prints[2]
    assert files.verify(tmp_path / "0") == prints[0]


def test_loading_gives_the_same_bits_in_memory_of_its_own(folder):
    model, config = load_model(folder)
    assert config == tiny_config()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny_model().state_dict().values(), strict=True)
    )
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_run_folder_stands_for_its_model_and_before_that_for_its_newest_whole_checkpoint(tmp_path):
    run, model = tmp_path / "run", tiny_model()
    store = CheckpointStore(run / "checkpoints")
    weights = logical(dict(model.named_parameters()), segments_of(model.config))
    for step in (10, 20):
        store.save(step, Snapshot(weights), side=lambda f: _side(f, model.config), wait=True)
    assert resolve(run).folder == store.path(20)
    assert resolve(run / "checkpoints").folder == store.path(20)
    (store.path(20) / "config.json").write_text("{}")
    assert resolve(run).folder == store.path(10)
    save_model(run / "model", model, model.config)
    assert resolve(run).folder == run / "model"
    assert load_config(run) == tiny_config()


def _side(folder, config):
    write_side(folder, config, tokenizer=None, card=None, dtype=torch.float32)


@pytest.mark.parametrize("name", ["nothing-here", "empty", "file.gguf"])
def test_a_path_without_a_model_says_what_was_looked_for(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingError, match=r"no model at|is a file; name the folder"):
        load_model(tmp_path / name)


def test_a_model_without_a_tokenizer_says_so(folder):
    with pytest.raises(MissingError, match=r"no tokenizer\.json"):
        load_tokenizer(folder)


def test_a_flipped_bit_in_a_sealed_folder_names_the_file(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"model\.safetensors.*checksum"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_safetensors_name_the_file_with_and_without_a_seal(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptError, match=rf"model\.safetensors has {keep} bytes"):
        load_model(folder)
    _unseal(folder)
    with pytest.raises(CorruptError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder)


def test_a_missing_tensor_is_named(folder):
    _rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(PunaError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    _rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(PunaError, match=r"model\.norm\.weight has shape \[31\], config\.json says \[32\]"):
        load_model(folder)


def test_a_tensor_that_no_llama_has_is_refused_and_an_old_rotary_table_is_not(folder):
    _rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, folder / "model.safetensors")
    with pytest.raises(PunaError, match=r"q_proj\.bias belongs to no Llama model"):
        load_model(folder)


def test_an_integer_tensor_is_refused(folder):
    _rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    with pytest.raises(PunaError, match="not a float type"):
        load_model(folder)


def test_an_index_that_names_a_missing_shard_or_a_file_elsewhere_is_refused(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "m", model, model.config, max_shard_bytes=40_000)
    _unseal(tmp_path / "m")
    first = min((tmp_path / "m").glob("model-*.safetensors"))
    moved = first.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(MissingError, match=first.name):
        load_model(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = {k: f"../{moved.name}" if v == first.name else v for k, v in values["weight_map"].items()}
    index.write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="allowed are files of its own folder"):
        load_model(tmp_path / "m")


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    _unseal(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pytorch_model\.bin: pickled weights are not read"):
        load_model(folder)


def test_a_recipe_that_does_not_fit_a_checkpoint_is_told_what_to_set():
    with pytest.raises(
        PunaError, match=r"checkpoint runs/tiny/00400 has 2 layers, the recipe asks for 16\. Set model\.n_layers=2"
    ):
        check_fits(tiny_config(), tiny_config(n_layers=16), where="runs/tiny/00400")


def test_weights_of_another_shape_are_not_copied_into_a_model(folder):
    with pytest.raises(PunaError, match="has 2 key and value heads, the recipe asks for 4"):
        list(read_weights(folder, tiny_model(n_kv_heads=4).config))


def test_a_tokenizer_that_is_larger_than_the_model_is_refused_and_nothing_is_written(tokenizer, tmp_path):
    model = tiny_model(vocab_size=500)
    with pytest.raises(PunaError, match="the tokenizer has 560 tokens, the model 500"):
        save_model(tmp_path / "m", model, model.config, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_found_before_a_byte_is_written(folder, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    before = files.verify(folder)
    model = tiny_model(seed=5)
    with pytest.raises(PunaError, match="the disk has 1 MiB free"):
        save_model(folder, model, model.config)
    assert files.verify(folder) == before


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = tiny_model()
    with pytest.raises(UsageError, match="holds other files"):
        save_model(tmp_path, model, model.config)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
