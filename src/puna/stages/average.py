"""`puna average`: several checkpoints of one shape in, their mean out."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import field_validator

from puna.core import console
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.stages.stage import Stage, StageRecipe


class AverageRecipe(StageRecipe):
    """Which models, with which weights."""

    models: tuple[Path, ...]
    """Two or more checkpoints of the same shape and tokenizer."""
    weights: tuple[float, ...] = ()
    """Weight of each model, scaled to sum to 1; none means equal."""

    @field_validator("models")
    @classmethod
    def _more_than_one(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(value) < 2:
            raise ValueError(f"averaging needs two models or more, {len(value)} is given")
        return value


def inputs(recipe: AverageRecipe) -> Mapping[str, Path]:
    """The models."""
    return {f"models.{i}": path for i, path in enumerate(recipe.models)}


def run(recipe: AverageRecipe, folder: RunFolder) -> None:
    """Average, tensor by tensor."""
    from puna.checkpoint.card import Card
    from puna.post.average import average

    made_from = {key: fingerprint(path) for key, path in inputs(recipe).items()}
    weights = ", ".join(f"{w:g}" for w in recipe.weights) or "equal"
    card = Card(recipe.name or "average", "averaging of checkpoints", {"weights": weights}, made_from)
    average(recipe.models, folder.model, weights=recipe.weights, card=card)
    console.say(f"mean of {len(recipe.models)} models: {folder.model}")


STAGE = Stage(verb="average", recipe=AverageRecipe, inputs=inputs, run=run)
