"""The collection: quotas with several people at once, counterbalanced sides, an append-only log; SQLite and PostgreSQL."""

import os
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.post.preferences.collection import Collection
from puna.post.preferences.database import connect
from puna.post.preferences.settings import CollectionSettings
from puna.post.preferences.task import Judgement, RefusedError
from tests.post.preferences.crowd import make_items

PLAIN = {"gold_rate": 0.0, "repeat_rate": 0.0}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A server of its own on a socket in a temporary folder; skipped where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    where = shutil.which("postgres") or (str(found[-1]) if found else None)
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="no psycopg here")
    programs, folder = Path(where).parent, tmp_path_factory.mktemp("pg")
    as_user = []
    if os.geteuid() == 0:  # the server refuses root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and runuser is not there")
        folder = Path("/tmp") / f"puna-pg-{os.getpid()}"
        folder.mkdir()
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_user, programs / "initdb", "-D", folder / "data", "-U", "puna", "-A", "trust"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run(
        [*control, "-l", folder / "log", "-o", options, "start"], check=True, capture_output=True, cwd=folder
    )
    try:
        yield f"postgresql://puna@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


def work(collection, name):
    while (task := collection.next_task(name)) is not None:
        submission = f"{name}-{task.assignment:06d}"
        assert collection.submit(name, task.assignment, task.revision, submission, Judgement("prefer", 2, 3.0))
        assert not collection.submit(name, task.assignment, task.revision, submission, Judgement("prefer", 2, 3.0))


def check_four_at_once(where):
    items, _ = make_items(12)
    collection = Collection.create(where, items, settings=CollectionSettings(overlap=3, **PLAIN))
    for name in "wxyz":
        collection.invite(name)
    opened = {name: Collection.open(where) for name in "wxyz"}
    threads = [threading.Thread(target=work, args=(opened[name], name)) for name in "wxyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for other in opened.values():
        other.close()
    labels = collection.labels()
    assert Counter(x.item for x in labels) == {item.id: 3 for item in items}
    assert max(Counter((x.item, x.annotator) for x in labels).values()) == 1
    for item in items:
        assert {Counter(x.left for x in labels if x.item == item.id)[side] for side in "ab"} == {1, 2}
    for statement in ("UPDATE labels SET value = -1", "DELETE FROM labels"):
        with pytest.raises(Exception, match="append-only"), collection._engine.begin() as connection:
            connection.execute(text(statement))
    assert collection.labels() == labels
    collection.close()


def test_four_people_at_once_fill_the_quota_exactly_on_sqlite(tmp_path):
    check_four_at_once(tmp_path / "c.db")


def test_four_people_at_once_fill_the_quota_exactly_on_postgres(postgres):
    check_four_at_once(postgres)


def test_an_open_task_comes_again_and_repeats_come_the_other_way_round(tmp_path):
    items, _ = make_items(40)
    settings = CollectionSettings(overlap=1, gold_rate=0.0, repeat_rate=0.3, repeat_gap=5)
    collection = Collection.create(tmp_path / "c.db", items, settings=settings)
    collection.invite("x")
    assert collection.next_task("x") == collection.next_task("x")
    work(collection, "x")
    labels = collection.labels()
    first = {x.item: (n, x.left) for n, x in enumerate(labels) if x.occasion == 0}
    again = [(n, x) for n, x in enumerate(labels) if x.occasion == 1]
    assert again
    for n, label in again:
        assert n - first[label.item][0] > 5 and label.left != first[label.item][1]


def test_what_cannot_be_recorded_is_refused_with_its_reason(tmp_path):
    items, _ = make_items(2)
    collection = Collection.create(tmp_path / "c.db", items, settings=CollectionSettings(**PLAIN))
    token = collection.invite("x")
    collection.invite("y")
    assert collection.enter(token).name == "x" and collection.enter("no") is None
    task = collection.next_task("x")
    for name, arguments, reason in (
        ("y", (task.assignment, 0, "submission", Judgement("prefer", 1)), "unknown"),
        ("x", (task.assignment, 1, "submission", Judgement("prefer", 1)), "conflict"),
        ("x", (task.assignment, 0, "submission", Judgement("prefer", 0)), "invalid"),
        ("x", (task.assignment, 0, "submission", Judgement("skip", 1)), "invalid"),
        ("x", (task.assignment, 0, "short", Judgement("prefer", 1)), "invalid"),
    ):
        with pytest.raises(RefusedError) as caught:
            collection.submit(name, *arguments)
        assert caught.value.reason == reason
    assert collection.labels() == []
    collection.pause("x", "Enough.")
    with pytest.raises(RefusedError, match="Enough"):
        collection.next_task("x")


def test_opening_what_is_not_a_collection_says_what_to_do(tmp_path):
    with pytest.raises(MissingError, match="puna annotate init"):
        connect(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("this is no database, however long it may be " * 30)
    with pytest.raises(CorruptError, match="not a database"):
        connect(tmp_path / "text.db")
    with pytest.raises(UsageError, match="allowed are"):
        connect("mysql://x/y")
    items, _ = make_items(2)
    Collection.create(tmp_path / "c.db", items).close()
    with pytest.raises(UsageError, match="holds a collection already"):
        Collection.create(tmp_path / "c.db", items)


def test_the_second_round_is_handed_out_after_its_items_came(tmp_path):
    items, _ = make_items(3)
    collection = Collection.create(tmp_path / "c.db", items, settings=CollectionSettings(overlap=1, **PLAIN))
    collection.invite("x")
    work(collection, "x")
    more, _ = make_items(3, seed=1, round=2)
    assert collection.add(more) == 3 and collection.add(more) == 0
    assert collection.next_task("x").item.round == 2
