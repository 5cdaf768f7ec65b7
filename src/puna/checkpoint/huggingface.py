"""Hugging Face's Llama layout: the names in `config.json` and the tensors in the safetensors files, to ours and back.

Our fused matrices are Hugging Face's separate ones stacked by rows, and rotary pairs lie alike, so a conversion is
stacking and cutting: no value is changed in either direction.

    embedding.weight                    model.embed_tokens.weight
    layers.i.attention_norm.weight      model.layers.i.input_layernorm.weight
    layers.i.attention.qkv.weight       model.layers.i.self_attn.{q,k,v}_proj.weight
    layers.i.attention.output.weight    model.layers.i.self_attn.o_proj.weight
    layers.i.feed_forward_norm.weight   model.layers.i.post_attention_layernorm.weight
    layers.i.feed_forward.gate_up       model.layers.i.mlp.{gate,up}_proj.weight
    layers.i.feed_forward.down.weight   model.layers.i.mlp.down_proj.weight
    norm.weight                         model.norm.weight
    head.weight                         lm_head.weight (neither exists when embeddings are tied)
    score.weight                        score.weight (LlamaForSequenceClassification with one label)

The rotary settings have two spellings: `rope_parameters` (transformers 5) and `rope_theta` beside `rope_scaling`
(before, and in most other tools). We read both and write both, so old and new readers agree.

No tensor is read or written here; `format.py` and `tensors.py` do that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from puna.core.errors import PunaError
from puna.model.config import ModelConfig, RopeScaling

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a Hugging Face folder: some rows of one of ours.

    Attributes:
        name: Its name there.
        rows: Its rows.
        columns: Its columns, or None for a vector.
    """

    name: str
    rows: int
    columns: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it must have."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)


def tensor_map(config: ModelConfig) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Every parameter of ours in order, with the parts that it is stacked from.

    Args:
        config: The model's shape.

    Yields:
        Our name, and its parts in the order of their rows.
    """
    width, heads, kv = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    yield "embedding.weight", (Part("model.embed_tokens.weight", config.vocab_size, width),)
    for i in range(config.n_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        yield f"{ours}.attention_norm.weight", (Part(f"{theirs}.input_layernorm.weight", width, None),)
        yield (
            f"{ours}.attention.qkv.weight",
            (
                Part(f"{theirs}.self_attn.q_proj.weight", heads, width),
                Part(f"{theirs}.self_attn.k_proj.weight", kv, width),
                Part(f"{theirs}.self_attn.v_proj.weight", kv, width),
            ),
        )
        yield f"{ours}.attention.output.weight", (Part(f"{theirs}.self_attn.o_proj.weight", width, heads),)
        yield f"{ours}.feed_forward_norm.weight", (Part(f"{theirs}.post_attention_layernorm.weight", width, None),)
        yield (
            f"{ours}.feed_forward.gate_up.weight",
            (
                Part(f"{theirs}.mlp.gate_proj.weight", config.ffn_dim, width),
                Part(f"{theirs}.mlp.up_proj.weight", config.ffn_dim, width),
            ),
        )
        yield f"{ours}.feed_forward.down.weight", (Part(f"{theirs}.mlp.down_proj.weight", width, config.ffn_dim),)
    yield "norm.weight", (Part("model.norm.weight", width, None),)
    if config.head == "score":
        yield "score.weight", (Part("score.weight", 1, width),)
    elif not config.tie_embeddings:
        yield "head.weight", (Part("lm_head.weight", config.vocab_size, width),)


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor may be left unread: rotary tables of old files, and the second copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (
        name == "lm_head.weight" and (config.tie_embeddings or config.head == "score")
    )


def to_json(
    config: ModelConfig, *, dtype: str, bos: int | None = None, eos: tuple[int, ...] = (), pad: int | None = None
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        config: The model's shape.
        dtype: `float32`, `bfloat16` or `float16`.
        bos: Id of the token that begins a text.
        eos: Ids of the tokens that end an answer.
        pad: Id of the padding token.
    """
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling = None
    if config.rope_scaling is not None:
        s = config.rope_scaling
        values = (s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_seq_len)
        scaling = {"rope_type": "llama3", **dict(zip(_LLAMA3, values, strict=True))}
        rope |= scaling
    return {
        "architectures": [_SCORES if config.head == "score" else "LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "dtype": dtype,
        "eos_token_id": list(eos) or None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "pad_token_id": pad,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_scaling": scaling,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        **({"id2label": {"0": "score"}, "label2id": {"score": 0}} if config.head == "score" else {}),
    }


def from_json(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """The shape that a `config.json` describes.

    Args:
        values: Its content.
        where: The file's path, for messages.

    Raises:
        PunaError: It is not a Llama model, or has a part that this transformer does not have.
    """
    kind = values.get("model_type")
    if kind != "llama":
        name = repr(kind) if kind else f"of {values.get('architectures') or 'no named architecture'}"
        raise PunaError(
            f"{where} describes a model {name}; allowed is model_type 'llama'. Convert it with its own tools."
        )
    problems = [f"{key} is missing" for key in _REQUIRED if not isinstance(values.get(key), int)]
    problems += [
        f"{key} is {values[key]!r}, allowed is {allowed!r}"
        for key, allowed in _FIXED.items()
        if key in values and values[key] != allowed
    ]
    if values.get("quantization_config"):
        problems.append("it is quantized; use the checkpoint it was made from")
    rope = _rope(values, problems)
    scores = _SCORES in (values.get("architectures") or ())
    labels = len(values.get("id2label") or {"0": "", "1": ""})  # transformers' default is two
    if scores and labels != 1:
        problems.append(f"it has {labels} labels; a reward model has one")
    if problems:
        raise PunaError(f"{where} cannot be read as a Llama model: {'; '.join(problems)}.")
    try:
        return ModelConfig(
            dim=values["hidden_size"],
            n_layers=values["num_hidden_layers"],
            n_heads=values["num_attention_heads"],
            n_kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            head_dim=values.get("head_dim") or 0,
            ffn_dim=values["intermediate_size"],
            vocab_size=values["vocab_size"],
            max_seq_len=values.get("max_position_embeddings", 2048),  # transformers' default, as are those below
            rope_theta=rope.get("rope_theta", 10_000.0),
            rope_scaling=_scaling(rope),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            tie_embeddings=values.get("tie_word_embeddings", False) and not scores,
            head="score" if scores else "tokens",
        )
    except ValidationError as error:
        reasons = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
        raise PunaError(f"{where} describes an impossible model: {reasons}.") from error


_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_SCORES = "LlamaForSequenceClassification"
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def _rope(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Both spellings as one dictionary."""
    rope = dict(values.get("rope_scaling") or {}) | dict(values.get("rope_parameters") or {})
    if "rope_theta" not in rope and values.get("rope_theta") is not None:
        rope["rope_theta"] = values["rope_theta"]
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        problems.append(f"rope_type is {kind!r}, allowed are 'default' and 'llama3'")
    elif kind == "llama3":
        problems += [f"rope scaling {key} is missing" for key in _LLAMA3 if key not in rope]
    part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if part not in (None, 1.0):
        problems.append(f"partial_rotary_factor is {part!r}, allowed is 1.0")
    return rope


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope["rope_type"] == "default":
        return None
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_seq_len=rope["original_max_position_embeddings"],
    )
