"""Averaging: equal to the mean of state dicts, streamed over shards, and refused where it makes no sense."""

import pytest
import torch

from puna.checkpoint.format import load_model, save_model
from puna.core.errors import UsageError
from puna.core.files import verify
from puna.model.config import ModelConfig
from puna.model.transformer import Transformer
from puna.post.average import average

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=300, max_seq_len=64)


def saved(path, seed, shape=SHAPE, **options):
    torch.manual_seed(seed)
    model = Transformer(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_model(path, model, shape, **options)
    return model


@pytest.mark.parametrize("limit", [1 << 30, 20_000], ids=["one file", "shards"])
def test_it_is_the_weighted_mean_of_the_state_dicts(tmp_path, limit):
    models = [saved(tmp_path / str(n), n, max_shard_bytes=limit).state_dict() for n in range(3)]
    fingerprint = average(
        [tmp_path / str(n) for n in range(3)], tmp_path / "out", weights=(1, 2, 1), max_shard_bytes=limit
    )
    assert verify(tmp_path / "out") == fingerprint
    found = load_model(tmp_path / "out")[0].state_dict()
    for name, tensor in found.items():
        naive = 0.25 * models[0][name] + 0.5 * models[1][name] + 0.25 * models[2][name]
        assert torch.allclose(tensor, naive, atol=1e-6)
    assert "averaging" in (tmp_path / "out/README.md").read_text()


def test_the_mean_of_a_model_with_itself_is_the_model_bitwise(tmp_path):
    model = saved(tmp_path / "a", 0).state_dict()
    average([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    assert all(torch.equal(t, model[k]) for k, t in load_model(tmp_path / "out")[0].state_dict().items())


def test_what_cannot_be_averaged_is_refused(tmp_path):
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1, SHAPE.model_copy(update={"n_layers": 1}))
    with pytest.raises(UsageError, match="at least two"):
        average([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(UsageError, match="another shape"):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(UsageError, match="weights are"):
        average([tmp_path / "a", tmp_path / "a"], tmp_path / "out", weights=(1.0,))
    assert not (tmp_path / "out").exists()
