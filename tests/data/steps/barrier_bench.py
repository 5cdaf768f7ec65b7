"""Asks one barrier or step about a list of documents, without the engine around it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from puna.data.document import Document
from puna.data.documents import INDEX_COLUMNS, ArrowWriter, feature_array, to_table
from puna.data.steps.step import Barrier, Decision, Part, Question, StepConfig


def decide_on(
    documents: Sequence[Document],
    barrier: Barrier,
    config: StepConfig,
    *,
    parts: int = 3,
    alive: Sequence[bool] | None = None,
    report: Path | None = None,
) -> list[Decision]:
    """The barrier's decisions over the documents, cut into parts; features are made in two batches a part."""
    mask = np.array(alive if alive is not None else [True] * len(documents), dtype=bool)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made = []
        for k, places in enumerate(np.array_split(np.arange(len(documents)), parts)):
            mine = [documents[i] for i in places]
            if not mine:
                continue
            features, index = home / f"features-{k}.arrow", home / f"index-{k}.arrow"
            with ArrowWriter(features) as out, ArrowWriter(index) as side:
                for batch in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
                    if batch:
                        columns = barrier.features(batch, config)
                        if columns:
                            out.add(pa.table({n: feature_array(v) for n, v in columns.items()}))
                        table = to_table(batch).select([*INDEX_COLUMNS])
                        side.add(table.append_column("bytes", pa.array([d.n_bytes for d in batch], pa.int64())))
            made.append(Part(f"part-{k:05d}", features, index, mask[places]))
        for name in ("scratch", "report"):
            (home / name).mkdir()
        question = Question(config, made, home / "scratch", report or home / "report", lambda f, items: map(f, items))
        return list(barrier.decide(question))


def kept(decisions: Sequence[Decision]) -> list[bool]:
    """Whether each document stays, in order."""
    return [bool(keep) for decision in decisions for keep in decision.keep]
