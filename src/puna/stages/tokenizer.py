"""`puna tokenize train`: a corpus in, a byte-level BPE tokenizer with Llama 3's special tokens out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from puna.core import console
from puna.core.run_folder import RunFolder
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.tokenizer.train import MAX_VOCAB_SIZE, train_bpe, vocab_size_problem


class TokenizerRecipe(StageRecipe):
    """A vocabulary and the text that it is trained on."""

    corpus: Path
    """The corpus, from `puna curate`."""
    vocab_size: int = MAX_VOCAB_SIZE
    """Ids in all, the 256 special tokens included: 512 (bytes alone) to 128,256."""
    sources: tuple[str, ...] = ()
    """Names of the corpus's sources to train on; none means all."""
    bytes_per_source: int | None = Field(default=None, ge=1)
    """Read at most this much text of each source, so that no source drowns the others; none reads everything."""
    max_text_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """Count at most this much text; beyond it a sample of the documents is counted."""

    @field_validator("vocab_size")
    @classmethod
    def _holds_the_bytes(cls, value: int) -> int:
        if problem := vocab_size_problem(value):
            raise ValueError(problem)
        return value


def plan(recipe: TokenizerRecipe) -> Sequence[PlanRow]:
    """The size of the vocabulary and how much text there is."""
    from puna.data.corpus import Corpus

    corpus = Corpus.open(recipe.corpus)
    names = recipe.sources or corpus.sources
    return [("vocabulary", str(recipe.vocab_size)), ("sources", ", ".join(names))]


def run(recipe: TokenizerRecipe, folder: RunFolder) -> None:
    """Train, save, and say how long the tokens are."""
    from puna.data.corpus import Corpus

    corpus = Corpus.open(recipe.corpus)
    texts = corpus.texts(recipe.sources or None, bytes_per_source=recipe.bytes_per_source)
    tokenizer = train_bpe(texts, vocab_size=recipe.vocab_size, max_text_bytes=recipe.max_text_bytes)
    tokenizer.save(folder.path)
    console.say(f"tokenizer {folder.path}: {tokenizer.vocab_size} ids, 256 of them special")


def inputs(recipe: TokenizerRecipe) -> Mapping[str, Path]:
    """The corpus."""
    return {"corpus": recipe.corpus}


STAGE = Stage(verb="tokenize train", recipe=TokenizerRecipe, inputs=inputs, plan=plan, run=run)
