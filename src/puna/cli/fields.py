"""How the fields of a recipe are shown: value and origin on one line, the meaning below."""

from collections.abc import Sequence

from puna.core import console
from puna.core.config import Field


def show_fields(title: str, fields: Sequence[Field]) -> None:
    """Print every field.

    Args:
        title: Whose fields these are.
        fields: From `core.config.describe`.
    """
    console.say(title)
    settings = [f"{field.key} = {field.value}" for field in fields]
    width = min(max(map(len, settings), default=0), 56)
    for field, setting in zip(fields, settings, strict=True):
        console.say(f"\n{setting:<{width}}  [{field.origin}]")
        if field.meaning:
            console.say(f"    {field.meaning}")
