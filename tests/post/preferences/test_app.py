"""The annotation page's API: what it refuses, with which status; and what the page says of the same limits."""

import asyncio
import re
from importlib.resources import files

import httpx
import pytest

from puna.post.preferences.app import create_app
from puna.post.preferences.collection import Collection
from puna.post.preferences.settings import CollectionSettings
from puna.post.preferences.task import MAX_TEXT
from tests.post.preferences.crowd import make_items


@pytest.fixture
def page(tmp_path):
    items, _ = make_items(3)
    settings = CollectionSettings(gold_rate=0.0, repeat_rate=0.0)
    collection = Collection.create(tmp_path / "c.db", items, settings=settings)
    head = {"Authorization": f"Bearer {collection.invite('ada')}"}
    task = collection.next_task("ada")
    body = {"assignment": task.assignment, "revision": 0, "submission": "submission-1", "action": "prefer"}
    body |= {"choice": "left", "strength": 2, "seconds": 1.5, "reasons": ["safer"], "note": "so"}

    def post(**changed):
        async def send():
            transport = httpx.ASGITransport(create_app(collection), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.post("/api/labels", json=body | changed, headers=head)

        return asyncio.run(send())

    yield post, collection
    collection.close()


@pytest.mark.parametrize("number", [10**30, 2**63, 2**31, -1])
@pytest.mark.parametrize("key", ["assignment", "revision"])
def test_a_number_that_no_task_can_have_is_a_bad_request(page, key, number):
    post, collection = page
    reply = post(**{key: number})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == key
    assert post(assignment=2**31 - 1).status_code == 404 and collection.labels() == []


def test_a_submission_s_name_stands_for_one_answer(page):
    post, collection = page
    assert post().json()["again"] is False
    assert post().json() == post().json() and post().json()["again"] is True
    changes = {"strength": 3}, {"choice": "right"}, {"note": "other"}, {"reasons": []}, {"edit": "x"}, {"seconds": 2.0}
    for changed in (*changes, {"revision": 1}):
        reply = post(**changed)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict"), changed
    assert len(collection.labels(every_revision=True)) == 1 and collection.labels()[0].note == "so"


def test_a_reason_is_given_once_and_is_one_of_those_offered(page):
    post, collection = page
    reply = post(reasons=["safer"] * 5000)
    assert reply.status_code == 400 and "given twice" in reply.text and len(reply.text) < 300
    assert post(reasons=["x" * 5000]).status_code == 400 and collection.labels() == []


def test_the_page_takes_no_longer_text_than_the_server(page):
    post, _ = page
    markup = (files("puna.post.preferences") / "page/index.html").read_text()
    areas = re.findall(r"<textarea[^>]*>", markup)
    assert len(areas) == 2 and all(f'maxlength="{MAX_TEXT}"' in area for area in areas)
    assert post(note="n" * (MAX_TEXT + 1)).status_code == 400
    assert post(edit="\N{GRINNING FACE}" * MAX_TEXT, note="n" * MAX_TEXT).status_code == 200
