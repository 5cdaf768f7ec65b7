"""`puna annotate`: collect preferences from people, and make checked training rows of them.

The verbs of the page work on a database (a file, or a PostgreSQL address); the stages work on JSONL files in run
folders, so that their results have a lineage.
"""

from pathlib import Path
from typing import Any

import click

from puna.cli import annotate_exchange
from puna.cli.stage_verb import HELP, examples, stage_command


@click.group(
    "annotate",
    context_settings=HELP,
    epilog=examples(
        "puna annotate init my-prefs.db my-items.jsonl",
        "puna annotate invite my-prefs.db ada",
        "puna annotate serve my-prefs.db",
        "puna annotate status my-prefs.db",
        "puna annotate log my-prefs.db my-labels",
    ),
)
def command() -> None:
    """Collect preferences from people, check them.

    DATABASE is a file (SQLite), or an address: postgresql://user:password@host/name.
    """


def _collection(database: str) -> Any:
    from puna.core.errors import need

    need("sqlalchemy", extra="annotate")
    need("alembic", extra="annotate")
    from puna.post.preferences.collection import Collection

    return Collection.open(database)


@command.command(
    "init",
    context_settings=HELP,
    epilog=examples(
        "puna annotate init my-prefs.db my-items.jsonl",
        "puna annotate init my-prefs.db my-items.jsonl overlap=5 gold_rate=0.15",
        "puna annotate init postgresql://me@localhost/prefs my-items.jsonl --guideline my-guideline.txt",
    ),
)
@click.argument("database")
@click.argument("items", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--title", default="Which answer is better?", show_default=True, help="Heading of the page.")
@click.option("--guideline", type=click.Path(), help="Text file with what annotators shall pay attention to.")
@click.option("--settings", is_flag=True, help="Print every setting that KEY=VALUE can change, and end.")
def init(
    database: str, items: str, overrides: tuple[str, ...], title: str, guideline: str | None, settings: bool
) -> None:
    """Make a collection of items to compare.

    ITEMS is JSONL, one item a line: "prompt" (text or messages), "a", "b"; and, where known, "model_a", "model_b",
    "id", "round", "gold" ("a" or "b": a test question), "uncertainty" (0 to 1).
    """
    from puna.cli.fields import show_fields
    from puna.core import config, console
    from puna.core.errors import MissingError, need
    from puna.post.preferences.settings import GUIDELINE, CollectionSettings

    resolved = config.load(CollectionSettings, None, overrides)
    if settings:
        show_fields("settings of `puna annotate init`", config.describe(resolved))
        return
    need("sqlalchemy", extra="annotate")
    need("alembic", extra="annotate")
    from puna.post.preferences.collection import Collection
    from puna.post.preferences.records import read_items

    read = read_items([items])
    if guideline is not None and not Path(guideline).is_file():
        raise MissingError(f"the guideline {guideline} is not there")
    text = GUIDELINE if guideline is None else Path(guideline).read_text(encoding="utf-8")
    Collection.create(database, read, settings=resolved.config, title=title, guideline=text).close()
    gold = sum(item.gold is not None for item in read)
    test = "test question" if gold == 1 else "test questions"
    console.say(f"{len(read) - gold} items and {gold} {test}, {resolved.config.overlap} people an item")
    if gold == 0:
        console.warn('no item has "gold": nobody can be tested. Some certain items make quality visible.')
    console.say(f"let people in: puna annotate invite {database} NAME")


@command.command("add", context_settings=HELP, epilog=examples("puna annotate add my-prefs.db my-round-2.jsonl"))
@click.argument("database")
@click.argument("items", type=click.Path())
def add(database: str, items: str) -> None:
    """Add items, for example those of the next round.

    The collection goes on with the largest "round" among its items.
    """
    from puna.core import console
    from puna.post.preferences.records import read_items

    read = read_items([items])
    console.say(f"{_collection(database).add(read)} of {len(read)} items are new")


@command.command(
    "invite",
    context_settings=HELP,
    epilog=examples(
        "puna annotate invite my-prefs.db ada",
        "puna annotate invite my-prefs.db grace --adjudicator --url https://labels.example.org",
    ),
)
@click.argument("database")
@click.argument("name")
@click.option("--adjudicator", is_flag=True, help="This person decides disputed items and sees what others said.")
@click.option("--url", default="http://127.0.0.1:8100", show_default=True, help="Where the page will be.")
def invite(database: str, name: str, adjudicator: bool, url: str) -> None:
    """Let a person in, and print the link with their token.

    Only a hash of the token is kept. Inviting somebody again gives a new token and ends the old one.
    """
    from puna.core import console

    token = _collection(database).invite(name, role="adjudicator" if adjudicator else "annotator")
    console.say(f"{name}: {url}/#token={token}")


@command.command(
    "pause",
    context_settings=HELP,
    epilog=examples(
        "puna annotate pause my-prefs.db bob --reason 'please call me'", "puna annotate pause my-prefs.db bob --end"
    ),
)
@click.argument("database")
@click.argument("name")
@click.option("--reason", default="Paused; please speak to whoever invited you.", help="What the person is told.")
@click.option("--end", is_flag=True, help="Give this person tasks again.")
def pause(database: str, name: str, reason: str, end: bool) -> None:
    """Give a person no more tasks, or (--end) tasks again."""
    from puna.core import console

    _collection(database).pause(name, None if end else reason)
    console.say(f"{name} {'gets tasks again' if end else 'is paused'}")


@command.command(
    "serve",
    context_settings=HELP,
    epilog=examples("puna annotate serve my-prefs.db", "puna annotate serve my-prefs.db --port 8101 --host 0.0.0.0"),
)
@click.argument("database")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8100,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 takes any free one.",
)
def serve(database: str, host: str, port: int) -> None:
    """Serve the annotation page.

    Can be stopped and killed at any moment: answers are acknowledged when they are on disk, and open pages send what
    they hold when the server is back.
    """
    from puna.core import console
    from puna.serve.config import ServeConfig
    from puna.serve.server import listen, run_app

    config = ServeConfig(host=host, port=port)
    listener = listen(config)
    with listener.socket:
        collection = _collection(database)
        from puna.post.preferences.app import create_app

        console.say(f"annotation page  {listener.url}/")
        run_app(create_app(collection, config=config), listener, drain_seconds=5)
        collection.close()


@command.command("upgrade", context_settings=HELP, epilog=examples("puna annotate upgrade my-prefs.db"))
@click.argument("database")
def upgrade(database: str) -> None:
    """Bring a database that an older puna made to the newest schema."""
    from puna.core import console
    from puna.core.errors import MissingError, need

    need("alembic", extra="annotate")
    from puna.post.preferences.database import connect, hide

    if "://" not in database and not Path(database).is_file():
        raise MissingError(f"collection {database} is not there")
    connect(database, create=True).dispose()
    console.say(f"{hide(database)} has the newest schema")


@command.command("status", context_settings=HELP, epilog=examples("puna annotate status my-prefs.db"))
@click.argument("database")
def status(database: str) -> None:
    """Say how far a round is, who is good at it, and how far people agree."""
    from puna.core import console
    from puna.core.errors import UsageError
    from puna.post.preferences.export import shown
    from puna.post.preferences.quality import QualityConfig, check

    collection = _collection(database)
    items, labels = collection.items(), collection.labels()
    rows = [(name, str(collection.progress(name).mine)) for name in collection.names()]
    console.table("answers by annotator", ["name", "answers"], rows)
    try:
        quality = check(items, labels, QualityConfig(resamples=200))
    except UsageError as error:
        console.say(str(error))
        return
    console.table("agreement", ["coefficient", "value"], [(k, shown(v)) for k, v in quality.coefficients.items()])
    console.table("items", ["verdict", "items"], list(quality.counts().items()))
    for card in quality.cards:
        console.say(f"{card.status} {card.name}: {'; '.join(card.reasons) or 'nothing to say'}")


@command.command("adjudicate", context_settings=HELP, epilog=examples("puna annotate adjudicate my-prefs.db --most 50"))
@click.argument("database")
@click.option(
    "--most", default=100, show_default=True, type=click.IntRange(min=1), help="How many items go into the queue."
)
def adjudicate(database: str, most: int) -> None:
    """Put the most disputed items before the adjudicators.

    Sorted by disagreement times uncertainty. Adjudicators find them on the same page; the first labels are kept.
    """
    from puna.core import console
    from puna.post.preferences.quality import QualityConfig, check

    collection = _collection(database)
    queue = check(collection.items(), collection.labels(), QualityConfig(resamples=0)).queue
    collection.set_disputes(dict(list(queue.items())[:most]))
    console.say(f"{min(most, len(queue))} of {len(queue)} disputed items wait for an adjudicator")


@command.command(
    "log",
    context_settings=HELP,
    epilog=examples("puna annotate log my-prefs.db my-labels", "puna annotate log my-prefs.db my-log --every-revision"),
)
@click.argument("database")
@click.argument("folder", type=click.Path())
@click.option("--every-revision", is_flag=True, help="Also labels that were changed later; not for qa.")
def log(database: str, folder: str, every_revision: bool) -> None:
    """Write items.jsonl and labels.jsonl of a collection, for `puna annotate qa`."""
    from puna.core import console
    from puna.post.preferences.records import write_rows

    collection = _collection(database)
    items, labels = collection.items(), collection.labels(every_revision=every_revision)
    write_rows(Path(folder) / "items.jsonl", items)
    write_rows(Path(folder) / "labels.jsonl", labels)
    console.say(f"{len(items)} items and {len(labels)} labels in {folder}")


command.add_command(annotate_exchange.read)
command.add_command(annotate_exchange.write)
command.add_command(
    stage_command(
        "annotate items",
        """Sample answers of several models and pair them for comparison.

Models answer the same prompts; each item holds two different answers, in turn from each pair of models.
""",
        "puna annotate items round/items",
    )
)
command.add_command(
    stage_command(
        "annotate label",
        """Have items judged: by people, by a judge model, or by simulated annotators.
""",
        "puna annotate label round/label",
    )
)
command.add_command(
    stage_command(
        "annotate qa",
        """Check labels: annotator cards, agreement, a verdict for every item, weighted training rows, a report page.
""",
        "puna annotate qa round/qa",
        "puna annotate qa round/qa min_strength=3 out=runs/trial/qa",
    )
)
