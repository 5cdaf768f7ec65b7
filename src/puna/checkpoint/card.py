"""The model card, `README.md` of a checkpoint: what it is, what it was made from, how to open it.

It states facts only, no times, paths or machines, so equal work gives an equal card.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from puna.model.adapter_config import Adapted
from puna.model.config import ModelConfig

FILE = "README.md"
PRETRAINED = ("pretraining", "continued pretraining")
"""What a base model was made by: it never saw a dialog."""


@dataclass(frozen=True)
class Card:
    """What a run knows about its model beside its shape.

    Attributes:
        name: Name of the model.
        made_by: What made it: `pretraining`, `supervised fine-tuning`, ...
        facts: Rows of the table: `{"steps": "2,000", "tokens": "65.5 M"}`.
        made_from: Fingerprints of what it was made from: `{"shards": "9f3c...", "tokenizer": "..."}`.
        license: SPDX name, or `other` when the data does not allow to say.
    """

    name: str = "model"
    made_by: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    license: str = "other"


def render(card: Card, config: ModelConfig, *, dtype: str) -> str:
    """The card as Markdown with the front matter that the Hugging Face hub reads."""
    heads = f"{config.n_heads} query heads, {config.n_kv_heads} key and value heads of width {config.head_dim}"
    scaling = "" if config.rope_scaling is None else f", stretched {config.rope_scaling.factor:g} times"
    scores = config.head == "score"
    auto = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    rows = {
        "parameters": f"{config.parameters():,} ({dtype})",
        "layers": f"{config.n_layers} of width {config.dim}, feed-forward {config.ffn_dim}",
        "attention": heads,
        "vocabulary": f"{config.vocab_size:,} tokens{', tied embeddings' if config.tie_embeddings else ''}",
        "context": f"{config.max_seq_len:,} tokens, rotary base {config.rope_theta:,.0f}{scaling}",
        **({"made by": card.made_by} if card.made_by else {}),
        **card.facts,
    }
    lines = [
        "---",
        f"license: {card.license}",
        "library_name: transformers",
        f"pipeline_tag: text-{'classification' if scores else 'generation'}",
        "tags: [llama, puna]",
        "---",
        "",
        f"# {card.name}",
        "",
        "A model of the Llama 3 architecture, made with Puna.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
    ]
    if card.made_from:
        lines += ["", "## Made from", "", "| input | fingerprint |", "|---|---|"]
        lines += [f"| {name} | `{fingerprint}` |" for name, fingerprint in card.made_from.items()]
    lines += [
        "",
        "## How to open it",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
        "",
        f"{'' if scores else 'or `puna chat path/to/this/folder`. '}`checksums.json` lists the SHA-256 of every file.",
    ]
    return "\n".join(lines) + "\n"


def made_by(folder: Path) -> str:
    """What the card in a checkpoint's folder says made it; empty where there is no card of ours."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r"^\| made by \| (.*) \|$", text, re.MULTILINE)
    return found[1] if found else ""


def render_adapter(card: Card, config: ModelConfig, adapted: Adapted) -> str:
    """The card of an adapter."""
    own = adapted.config
    base = adapted.base or "its base"
    rows = {
        "kind": f"{own.kind}, rank {own.rank}, alpha {own.alpha:g}{', scaled by its root' if own.rslora else ''}",
        "matrices": ", ".join(own.targets),
        "base": f"{base}, {config.parameters():,} parameters",
        **({"its blocks": "packed in four bits (NF4)"} if own.kind == "qlora" else {}),
        **({"made by": card.made_by} if card.made_by else {}),
        **card.facts,
    }
    lines = [
        "---",
        f"license: {card.license}",
        "library_name: peft",
        *([f"base_model: {adapted.base}"] if adapted.base else []),
        "pipeline_tag: text-generation",
        "tags: [llama, lora, puna]",
        "---",
        "",
        f"# {card.name}",
        "",
        "An adapter of a Llama model, made with Puna.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
        "## How to open it",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        "```",
        "",
        "or `puna chat path/to/this/folder`; `puna export hf path/to/this/folder out` merges it into its base.",
    ]
    if card.made_from:
        made = [f"| {name} | `{fingerprint}` |" for name, fingerprint in card.made_from.items()]
        lines += ["", "## Made from", "", "| input | fingerprint |", "|---|---|", *made]
    return "\n".join(lines) + "\n"
