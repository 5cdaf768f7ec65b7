"""`puna tokenize pack`: a corpus and a tokenizer in, sealed token shards out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.core import console
from puna.core.run_folder import RunFolder
from puna.data.corpus import Corpus
from puna.data.shard_writer import ShardsConfig, build_shards
from puna.stages.stage import PlanRow, Stage, StageRecipe


class PackRecipe(ShardsConfig, StageRecipe):
    """A corpus, a tokenizer, and how the shards are cut."""

    corpus: Path
    """The corpus, from `puna curate`."""
    tokenizer: Path
    """The tokenizer, from `puna tokenize train` or any Llama 3 tokenizer."""


def inputs(recipe: PackRecipe) -> Mapping[str, Path]:
    """The corpus and the tokenizer."""
    return {"corpus": recipe.corpus, "tokenizer": recipe.tokenizer}


def plan(recipe: PackRecipe) -> Sequence[PlanRow]:
    """The text that there is, and the disk that its tokens need at most."""
    corpus = Corpus.open(recipe.corpus)
    names = recipe.sources or corpus.sources
    n_bytes = sum(corpus.manifest["sources"][name]["kept"]["bytes"] for name in names)
    return [("text", console.short_bytes(n_bytes)), ("disk, at most", console.short_bytes(2 * n_bytes))]


def run(recipe: PackRecipe, folder: RunFolder) -> None:
    """Tokenise everything and show what there is now."""
    from puna.tokenizer.bpe import Tokenizer

    settings = ShardsConfig(**{name: getattr(recipe, name) for name in ShardsConfig.model_fields})
    shards = build_shards(Corpus.open(recipe.corpus), Tokenizer.load(recipe.tokenizer), folder.path, settings)
    rows = [
        (name, split, source.n_documents, source.n_tokens)
        for split in ("train", "held_out")
        for name, source in shards.sources(split).items()
    ]
    console.table(f"shards {folder.path}", ["source", "split", "documents", "tokens"], rows)


STAGE = Stage(verb="tokenize pack", recipe=PackRecipe, inputs=inputs, plan=plan, run=run)
