"""People as annotators of a stage: put the items before them, wait, and take what they said.

The collection lives outside the run folder, since the page has it open. The stage adds its items to it and looks: are
there labels still to come, it stops with the commands that bring them (exit code 75), and the same command goes on from
there. When everybody is done and `adjudicate` is set, the most disputed items go to the adjudicators first.
"""

from collections import Counter
from collections.abc import Sequence

from puna.core import files
from puna.core.errors import MissingError, Stopped
from puna.core.run_folder import RunFolder
from puna.post.preferences.records import Item, Label
from puna.post.preferences.settings import CollectionSettings

DISPUTED = "disputed.json"


def missing_labels(items: Sequence[Item], labels: Sequence[Label], settings: CollectionSettings) -> tuple[int, int]:
    """How many labels are still wanted, and how many were wanted from the start.

    Test questions have no quota. An item waits for nobody when enough people flagged it, or looked at it at all: one
    that cannot be decided would wait for ever.
    """
    first = [label for label in labels if label.occasion == 0 and label.role == "annotator"]
    said = Counter(label.item for label in first if label.action in ("prefer", "skip"))
    flagged = Counter(label.item for label in first if label.action == "flag")
    judged = [item for item in items if item.gold is None]
    missing = sum(max(0, settings.overlap - said[item.id]) for item in judged if flagged[item.id] < settings.flag_limit)
    return missing, settings.overlap * len(judged)


def collect(
    folder: RunFolder, items: Sequence[Item], database: str, settings: CollectionSettings, *, adjudicate: int
) -> list[Label]:
    """The labels of these items, once they are all there.

    Args:
        folder: Of the stage; `work/` remembers which items were given to adjudicators.
        items: What is judged.
        database: The collection, a file or an address; made when it is not there.
        settings: Of a new collection; one that is there keeps its own.
        adjudicate: How many of the most disputed items adjudicators decide.

    Raises:
        Stopped: Labels are still to come.
    """
    from puna.post.preferences import quality
    from puna.post.preferences.collection import Collection
    from puna.post.preferences.database import hide

    try:
        collection = Collection.open(database)
        collection.add(items)
    except MissingError:
        collection = Collection.create(database, items, settings=settings)
    try:
        ids = {item.id for item in items}
        labels = [label for label in collection.labels() if label.item in ids]
        where = hide(database)
        missing, wanted = missing_labels(items, labels, collection.settings)
        if missing:
            raise Stopped(_waiting(f"{wanted - missing} of {wanted} labels are there", where))
        if adjudicate:
            path = folder.work / DISPUTED
            if not path.is_file():
                queue = quality.check(items, labels, quality.QualityConfig(resamples=0)).queue
                chosen = dict(list(queue.items())[:adjudicate])
                collection.set_disputes(chosen)
                files.write_json(path, sorted(chosen))
            decided = {label.item for label in labels if label.role == "adjudicator"}
            left = [item for item in files.read_json(path) if item not in decided]
            if left:
                told = f"the annotators are done; {len(left)} disputed items wait for an adjudicator"
                raise Stopped(_waiting(told, where, role=" --adjudicator"))
        return labels
    finally:
        collection.close()


def _waiting(told: str, where: str, role: str = "") -> str:
    return "\n".join(
        [
            f"waiting for people: {told}.",
            f"  let somebody in:  puna annotate invite {where} NAME{role}",
            f"  open the page:    puna annotate serve {where}",
            f"  see how far:      puna annotate status {where}",
            "Then the same command goes on.",
        ]
    )
