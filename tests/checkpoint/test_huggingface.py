"""Our folders open in transformers, theirs open here, and the numbers agree."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from puna.checkpoint import huggingface
from puna.checkpoint.format import load_model, load_tokenizer, save_model
from puna.core.errors import PunaError
from puna.model.config import SIZES, RopeScaling

from .conftest import tiny_config, tiny_model

SCALING = RopeScaling(factor=8.0, original_max_seq_len=32)
GRID = [
    {},
    {"tie_embeddings": True},
    {"n_kv_heads": 1},
    {"n_kv_heads": 4},
    {"n_kv_heads": 4, "tie_embeddings": True},
    {"rope_scaling": SCALING},
    {"rope_scaling": SCALING, "tie_embeddings": True, "n_kv_heads": 1},
    {"rope_scaling": RopeScaling(factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0, original_max_seq_len=64)},
    {"rope_theta": 10_000.0, "norm_eps": 1e-6},
    {"head_dim": 16},
    {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "ffn_dim": 40},
    {"n_layers": 1, "dim": 48, "n_heads": 6, "n_kv_heads": 3, "tie_embeddings": True},
    {"n_layers": 3, "vocab_size": 611},
]


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _tokens(n_rows=2, length=80):
    return torch.randint(0, 560, (n_rows, length), generator=torch.Generator().manual_seed(1))


def _greedy(model, tokens, n):
    for _ in range(n):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens


@pytest.mark.parametrize("changes", GRID, ids=str)
@torch.no_grad()
def test_a_folder_of_ours_gives_transformers_the_same_logits(changes, tmp_path):
    model = tiny_model(**changes)
    save_model(tmp_path / "m", model, model.config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs) is LlamaForCausalLM and theirs.dtype == torch.float32
    torch.testing.assert_close(theirs(_tokens()).logits, model(_tokens()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", GRID, ids=str)
@torch.no_grad()
def test_a_folder_of_transformers_gives_us_the_same_logits_and_goes_back_unchanged(changes, tmp_path):
    config = LlamaConfig(**huggingface.to_json(tiny_config(**changes), dtype="float32"))
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model, found = load_model(tmp_path / "theirs")
    assert found == tiny_config(**changes)
    torch.testing.assert_close(theirs(_tokens()).logits, model(_tokens()), atol=1e-4, rtol=0)
    save_model(tmp_path / "ours", model, found)
    back = LlamaForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


@torch.no_grad()
def test_greedy_text_is_identical_in_transformers(tokenizer, tmp_path):
    model = tiny_model(tie_embeddings=True)
    save_model(tmp_path / "m", model, model.config, tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    prompt = "The quick brown"
    ids = [tokenizer.specials.bos, *tokenizer.encode(prompt)]
    assert their_tokenizer(prompt)["input_ids"] == ids
    inputs = torch.tensor([ids])
    their_ids = theirs.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=40, eos_token_id=None)
    our_ids = _greedy(model, inputs, 40)
    assert their_ids.tolist() == our_ids.tolist()
    assert their_tokenizer.decode(their_ids[0]) == tokenizer.decode(our_ids[0].tolist())


def test_transformers_learns_from_the_folder_which_tokens_end_an_answer(tokenizer, tmp_path):
    model = tiny_model()
    save_model(tmp_path / "m", model, model.config, tokenizer=tokenizer)
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "m").generation_config
    special = tokenizer.specials
    assert generation.eos_token_id == [special.end_of_text, special.eot]
    assert (generation.bos_token_id, generation.pad_token_id) == (special.bos, special.pad)
    assert load_tokenizer(tmp_path / "m").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_sharded_folders_of_transformers_load_in_every_dtype(dtype, tied, tmp_path):
    config = LlamaConfig(**huggingface.to_json(tiny_config(tie_embeddings=tied), dtype="float32"))
    theirs = LlamaForCausalLM(config).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    model, _ = load_model(tmp_path)
    assert torch.equal(model.embedding.weight, theirs.model.embed_tokens.weight) and model.norm.weight.dtype == dtype
    wide, _ = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(wide.layers[1].feed_forward.down.weight, theirs.model.layers[1].mlp.down_proj.weight.float())


@torch.no_grad()
def test_our_shards_with_an_index_open_in_transformers(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "m", model, model.config, max_shard_bytes=30_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3 and files == {p.name for p in (tmp_path / "m").glob("*.safetensors")}
    assert index["metadata"] == {
        "total_parameters": model.config.parameters(),
        "total_size": 4 * model.config.parameters(),
    }
    assert all(path.stat().st_size <= 80_000 for path in (tmp_path / "m").glob("*.safetensors"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(theirs(_tokens()).logits, model(_tokens()), atol=1e-4, rtol=0)
    again, _ = load_model(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_both_spellings_of_the_rotary_settings_say_the_same():
    new = huggingface.to_json(tiny_config(rope_scaling=SCALING), dtype="float32")
    only_new = {k: v for k, v in new.items() if k not in ("rope_theta", "rope_scaling")}
    only_old = {k: v for k, v in new.items() if k != "rope_parameters"}
    with_type = {**only_old, "rope_scaling": {"type": "llama3", **only_old["rope_scaling"]}}
    del with_type["rope_scaling"]["rope_type"]
    for values in (new, only_new, only_old, with_type):
        assert huggingface.from_json(values, where="config.json") == tiny_config(rope_scaling=SCALING)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_survives_its_config_file_and_transformers_counts_the_same_parameters(name):
    values = json.loads(json.dumps(huggingface.to_json(SIZES[name], dtype="bfloat16")))
    assert huggingface.from_json(values, where="config.json") == SIZES[name]
    parts = [part for _, parts in huggingface.tensor_map(SIZES[name]) for part in parts]
    assert sum(part.rows * (part.columns or 1) for part in parts) == SIZES[name].parameters()
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**values)) if SIZES[name].n_layers <= 32 else None
    if theirs is not None:
        expected = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
        assert {part.name: part.shape for part in parts} == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model 'qwen2'.*allowed is model_type 'llama'"),
        ({"model_type": None, "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_bias": True}, "attention_bias is True, allowed is False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', allowed is 'silu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}, "rope_scaling": None},
            "low_freq_factor is missing",
        ),
        ({"num_attention_heads": 3, "head_dim": None}, "impossible model.*multiple of n_heads 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_is_not_this_transformer_is_refused_with_the_reason(change, message):
    values = {**huggingface.to_json(tiny_config(), dtype="float32"), **change}
    with pytest.raises(PunaError, match=message):
        huggingface.from_json(values, where="x/config.json")
