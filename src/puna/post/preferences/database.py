"""Opening the database of a collection: a file for SQLite, an address for PostgreSQL.

SQLite runs in write-ahead mode with full flushes: a label that was acknowledged survives a power cut. Transactions that
may write begin as such (`BEGIN IMMEDIATE`), so two annotators wait for each other instead of failing half-way; on
PostgreSQL a lock on the row of settings does the same (`collection.py`).
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from puna.core.errors import CorruptError, MissingError, PunaError, UsageError

_MIGRATIONS = Path(__file__).parent / "migrations"


def address(where: str | Path) -> str:
    """SQLAlchemy's URL of a database.

    Args:
        where: A file, or an address such as `postgresql://user:password@host/name`.

    Raises:
        UsageError: An address of another kind.
    """
    text = str(where)
    if "://" not in text:
        return f"sqlite:///{text}"
    kind, _, rest = text.partition("://")
    if kind in {"postgresql", "postgres", "postgresql+psycopg"}:
        return f"postgresql+psycopg://{rest}"
    if kind == "sqlite":
        return text
    raise UsageError(f"database {hide(text)} is of kind {kind!r}; allowed are a file, or postgresql://...")


def hide(where: str | Path) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", str(where))


def connect(where: str | Path, *, create: bool = False, durable: bool = True) -> Engine:
    """Open a collection's database.

    Args:
        where: A file or an address.
        create: Make it, or bring an older one to the newest schema.
        durable: Wait for the disk at every answer; simulated people, who can answer again, need not.

    Raises:
        MissingError: There is none, and `create` is off.
        UsageError: Its schema is older or newer than this version's.
        PunaError: The server cannot be reached.
    """
    url = address(where)
    is_sqlite = url.startswith("sqlite")
    path = Path(url.removeprefix("sqlite:///"))
    if is_sqlite and not create and not path.is_file():
        raise MissingError(f"collection {path} is not there. Make it first: puna annotate init {path} ITEMS.jsonl")
    if is_sqlite and create:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(url)
    except ModuleNotFoundError as error:
        raise MissingError("PostgreSQL needs the package 'psycopg'. Type: pip install 'psycopg[binary]'") from error
    if is_sqlite:
        _prepare_sqlite(engine, durable=durable)
    try:
        _check_schema(engine, where, create=create)
    except OperationalError as error:
        engine.dispose()
        raise PunaError(f"cannot open {hide(where)}: {_first_line(error)}") from None
    except DatabaseError as error:
        engine.dispose()
        raise CorruptError(f"{hide(where)} is not a database of this kind: {_first_line(error)}") from None
    return engine


def _first_line(error: DatabaseError) -> str:
    return (str(error.orig).strip().splitlines() or [type(error).__name__])[0]


def _prepare_sqlite(engine: Engine, *, durable: bool) -> None:
    synchronous = "synchronous = FULL" if durable else "synchronous = OFF"

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy says BEGIN below, not the driver
        for pragma in ("busy_timeout = 30000", "journal_mode = WAL", synchronous, "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_schema(engine: Engine, where: str | Path, *, create: bool) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", _MIGRATIONS.as_posix())
    config.set_main_option("path_separator", "os")
    newest = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found == newest:
            return
        if found is not None and found > (newest or ""):
            raise UsageError(f"{hide(where)} has schema {found}, this puna knows {newest}. Install a newer puna.")
        if not create:
            what = "holds no collection" if found is None else f"has schema {found}, this puna wants {newest}"
            verb = "init" if found is None else "upgrade"
            raise UsageError(f"{hide(where)} {what}. Type: puna annotate {verb} {hide(where)}")
        config.attributes["connection"] = connection
        with _quiet_alembic():
            command.upgrade(config, "head")


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    logger = logging.getLogger("alembic")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
