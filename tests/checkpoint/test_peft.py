"""Adapters in PEFT's format: ours in PEFT, PEFT's in ours, merged, and what is refused."""

import json
import warnings

import pytest
import torch

from puna.checkpoint.format import load_config, load_model, load_tokenizer, read_weights, resolve, save_model
from puna.checkpoint.merging import export_merged
from puna.checkpoint.peft import save_adapter
from puna.core.errors import MissingError, PunaError
from puna.core.files import fingerprint
from puna.model.adapter import adapt, fill_packed
from puna.model.adapter_config import AdapterConfig
from puna.model.projection import projections
from puna.model.transformer import Transformer
from tests.post.tiny import TOKENIZER, tiny_model

KINDS = [
    {"kind": "lora"},
    {"kind": "lora", "targets": ("q_proj", "down_proj", "lm_head"), "rslora": True},
    {"kind": "dora", "targets": ("v_proj", "o_proj", "gate_proj")},
    {"kind": "qlora"},
]
kinds = pytest.mark.parametrize("values", KINDS, ids=lambda v: v["kind"] + "-" * v.get("rslora", False))
TOKENS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(dtype=torch.float32)
    save_model("base", model, model.config, tokenizer=TOKENIZER)
    return model.config


def adapted(shape, values):
    with torch.device("meta"):
        model = Transformer(shape)
    double = True if values["kind"] == "qlora" else None
    fill_packed(model, read_weights("base", shape), dtype=torch.float32, double_quantization=double)
    adapt(model, AdapterConfig(rank=4, **values), base="base", base_fingerprint=fingerprint("base"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def in_transformers(folder, adapter=None):
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    if adapter is None:
        return model
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, adapter)


@kinds
def test_ours_in_peft_merged_and_loaded_give_the_same_logits(base, values):
    model = adapted(base, values)
    save_adapter("adapter", model, tokenizer=TOKENIZER)
    ours = model(TOKENS)
    loaded, shape = load_model("adapter")
    assert shape == base == load_config("adapter") and resolve("adapter").layout == "adapter"
    torch.testing.assert_close(loaded(TOKENS), ours, atol=2e-5, rtol=0)
    assert load_tokenizer("adapter").vocab_size == TOKENIZER.vocab_size
    done = export_merged("adapter", "merged")
    assert done.matrices == 2 * 7 * (values["kind"] != "dora") - 9 * values.get("rslora", False) or done.matrices == 6
    assert done.rounding == 0.0
    for name, tensor in load_model("merged")[0].state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    torch.testing.assert_close(in_transformers("merged")(TOKENS).logits, ours, atol=1e-4, rtol=0)
    folder = "base"
    if values["kind"] == "qlora":  # PEFT gets the base that the codes stand for
        own = load_model("base")[0]
        own.load_state_dict({f"{n}.weight": p.base() for n, p in projections(model)}, strict=False)
        save_model("unpacked", own, base)
        folder = "unpacked"
    torch.testing.assert_close(in_transformers(folder, "adapter")(TOKENS).logits, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True, "target_modules": ["q_proj", "lm_head"]}]
)
def test_what_peft_trained_loads_in_ours(base, options):
    peft = pytest.importorskip("peft")
    values = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(in_transformers("base"), peft.LoraConfig(**values))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained("theirs", save_embedding_layers=False)
    ours, _ = load_model("theirs", base="base")
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=0)


def test_a_merge_into_bf16_states_its_rounding(base):
    save_adapter("adapter", adapted(base, KINDS[0]))
    done = export_merged("adapter", "half", dtype=torch.bfloat16)
    assert 0 < done.rounding < 0.02
    assert load_model("half")[0].dtype == torch.bfloat16


def test_another_base_a_missing_one_and_other_adapters_are_refused(base, tmp_path):
    save_adapter("adapter", adapted(base, KINDS[0]))
    other = tiny_model(seed=1, dtype=torch.float32)
    save_model("other", other, other.config)
    with pytest.raises(PunaError, match="another model"):
        load_model("adapter", base="other")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(MissingError, match="--base"):
        load_model("adapter")
    load_model("adapter", base="moved")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for change, said in [
        ({"peft_type": "IA3"}, "LORA"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ]:
        theirs = tmp_path / "theirs"
        theirs.mkdir(exist_ok=True)
        (theirs / "adapter_config.json").write_text(json.dumps(settings | change))
        (theirs / "adapter_model.safetensors").write_bytes(
            (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
        )
        with pytest.raises(PunaError, match=said):
            load_model(theirs, base="moved")
