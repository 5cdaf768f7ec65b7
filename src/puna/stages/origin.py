"""From a shard set up its lineage to the source that a document was read from."""

import tomllib
from pathlib import Path

from puna.core.errors import MissingError
from puna.lineage.artifact import ancestry


def source_root(shards: Path, source: str) -> str:
    """Where a source of the corpus behind a shard set lies.

    Args:
        shards: The shard set's folder.
        source: Name of the source.

    Raises:
        MissingError: Lineage does not lead to it.
    """
    for ancestor in ancestry(shards):
        recipe = ancestor.path / "config.toml"
        if ancestor.record and ancestor.record.stage == "curate" and recipe.is_file():
            for entry in tomllib.loads(recipe.read_text(encoding="utf-8")).get("sources", []):
                if entry.get("name") == source and entry.get("path"):
                    return str(entry["path"])
    raise MissingError(f"the lineage of {shards} does not say where the source {source!r} lies. Give it with --root.")
