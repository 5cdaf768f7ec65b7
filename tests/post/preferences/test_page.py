"""The page in a real browser: keyboard only, two annotators at once, the server killed and the page reloaded."""

import random

import pytest

from puna.core.dialog import Dialog
from puna.post.preferences.collection import Collection
from puna.post.preferences.records import Item
from puna.post.preferences.settings import CollectionSettings
from tests.post.preferences.browser import Server, chromium, need_chromium, press, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
LONG = "The second answer is much longer, and it goes on for a while without saying more than the first. " * 3


@pytest.fixture(scope="module", autouse=True)
def _browser():
    need_chromium()


def items(n):
    return [
        Item(f"item-{i}", Dialog.of(("user", f"Question number {i}?")), f"Answer {i} of a.", f"Answer {i} of b. {LONG}")
        for i in range(n)
    ]


def text(driver, name):
    return driver.execute_script(f"return document.getElementById('{name}').textContent")


def shown(driver, name):
    return driver.execute_script(f"return !document.getElementById('{name}').hidden")


def task_key(driver):
    return text(driver, "prompt") + text(driver, "left")[:20] if shown(driver, "task") else ""


def enter(driver, url, token):
    """By the link of the invitation; the token leaves the address at once."""
    driver.get(f"{url}/#token={token}")
    until(lambda: shown(driver, "task") or shown(driver, "done"))
    assert token not in driver.current_url


def answer(driver, key):
    before = task_key(driver)
    press(driver, key, ENTER)
    until(lambda: task_key(driver) != before)


def collection_of(path, n, people, **settings):
    quiet = {"gold_rate": 0.0, "repeat_rate": 0.0, "overlap": len(people)} | settings
    collection = Collection.create(path, items(n), settings=CollectionSettings(**quiet))
    return collection, {name: collection.invite(name) for name in people}


def test_nothing_is_lost_and_nothing_counted_twice_when_the_server_is_killed_and_pages_are_reloaded(tmp_path):
    """Two annotators at once, keys only; the server dies before and after an answer was sent, pages are reloaded."""
    n, draw = 8, random.Random(0)
    collection, tokens = collection_of(tmp_path / "c.db", n, ["ada", "bob"])
    said = {name: {} for name in tokens}
    server = Server(tmp_path / "c.db")
    with server, chromium() as one, chromium() as two:
        browsers = {"ada": one, "bob": two}
        for name, driver in browsers.items():
            enter(driver, server.url, tokens[name])
        for step in range(n):
            if step == 3:  # answered while the server is dead, reloaded before it is back
                server.kill()
                for name, driver in browsers.items():
                    said[name][text(driver, "prompt")] = (text(driver, "left"), 2)
                    press(driver, "2", ENTER)
                    until(lambda driver=driver: shown(driver, "notice"))
                server.start()
                for driver in browsers.values():
                    driver.refresh()
                    until(lambda driver=driver: text(driver, "mine") == "4 by you")
                continue
            if step == 5:  # half an answer, then a kill and a reload: the draft is still there
                press(one, "7", "n")
                press(one, "because it is right", ESCAPE)
                server.kill()
                server.start()
                one.refresh()
                until(lambda: shown(one, "task"))
                assert one.execute_script("return form.querySelector('input[name=choice]:checked').value") == "6"
                assert one.execute_script("return document.getElementById('note').value") == "because it is right"
            for name, driver in browsers.items():
                key = 7 if step == 5 and name == "ada" else draw.randint(1, 8)
                said[name][text(driver, "prompt")] = (text(driver, "left"), key)
                answer(driver, str(key))
        for driver in browsers.values():
            assert shown(driver, "done")
    labels = collection.labels()
    assert len(labels) == len(collection.labels(every_revision=True)) == 2 * n
    assert {(label.item, label.annotator) for label in labels} == {
        (item.id, name) for item in collection.items() for name in tokens
    }
    for label in labels:
        item = next(item for item in collection.items() if item.id == label.item)
        left, key = said[label.annotator]["User" + item.prompt.messages[0].content]
        assert left == item.answer(label.left)
        strength, is_left = (5 - key, True) if key <= 4 else (key - 4, False)
        assert label.value == (strength if is_left == (label.left == "a") else -strength)
        assert label.seconds is not None and label.seconds > 0
    assert {label.note for label in labels if label.annotator == "ada"} == {"", "because it is right"}


def test_an_answer_that_arrived_without_its_acknowledgement_is_counted_once(tmp_path):
    """The same outbox is sent again after a reload, as when the reply was lost on its way."""
    collection, tokens = collection_of(tmp_path / "c.db", 3, ["ada"])
    with Server(tmp_path / "c.db") as server, chromium() as driver:
        enter(driver, server.url, tokens["ada"])
        driver.execute_script("""
            const real = window.fetch;
            window.fetch = async (path, options) => {
              const reply = await real(path, options);
              if (path === '/api/labels') { window.arrived = true; return new Promise(() => {}); }
              return reply;
            };""")
        press(driver, "1", ENTER)
        until(lambda: driver.execute_script("return window.arrived"))
        assert len(collection.labels()) == 1
        driver.refresh()
        until(lambda: text(driver, "mine") == "1 by you")
        assert len(collection.labels(every_revision=True)) == 1
        assert driver.execute_script("return Object.keys(localStorage).filter(k => k.includes('outbox')).length") == 0


def test_every_action_has_a_key_and_two_windows_of_one_person_do_not_count_twice(tmp_path):
    collection, tokens = collection_of(tmp_path / "c.db", 6, ["ada"])
    with Server(tmp_path / "c.db") as server, chromium() as driver:
        driver.get(server.url)
        until(lambda: shown(driver, "entry"))
        press(driver, "wrong token", ENTER)
        until(lambda: "not known" in text(driver, "notice"))
        driver.execute_script("document.getElementById('token').value = ''")
        press(driver, tokens["ada"], ENTER)
        until(lambda: shown(driver, "task"))
        press(driver, ENTER)  # nothing chosen yet: nothing happens
        press(driver, "?", "g")
        assert shown(driver, "keys") and shown(driver, "guideline")
        press(driver, "?", "g", "3", "r", " ", ESCAPE)
        press(driver, "e", " Better.", ESCAPE)
        answer(driver, "3")
        before = task_key(driver)
        press(driver, "s")
        until(lambda: task_key(driver) != before)
        before = task_key(driver)
        press(driver, "f")
        until(lambda: task_key(driver) != before)
        first = driver.current_window_handle
        driver.switch_to.new_window("tab")
        driver.execute_cdp_cmd("Page.bringToFront", {})
        enter(driver, server.url, tokens["ada"])
        answer(driver, "8")
        driver.switch_to.window(first)
        press(driver, "1", ENTER)
        until(lambda: "another window" in text(driver, "notice"))
        press(driver, "b")
        until(lambda: "to change it" in text(driver, "spoken"))
        answer(driver, "6")
    labels = collection.labels()
    assert [label.action for label in labels] == ["prefer", "skip", "flag", "prefer"]
    assert abs(labels[0].value) == 2 and labels[0].reasons == ("more correct",)
    assert labels[0].edit.endswith(" Better.")
    assert abs(labels[3].value) == 2  # changed from 4 by going back
    assert len(collection.labels(every_revision=True)) == 5


@pytest.mark.parametrize("status", [400, 413])
def test_an_answer_that_the_server_refuses_is_kept_to_be_changed_and_not_sent_again(tmp_path, status):
    collection, tokens = collection_of(tmp_path / "c.db", 2, ["ada"])
    with Server(tmp_path / "c.db") as server, chromium() as driver:
        enter(driver, server.url, tokens["ada"])
        if status == 400:  # a page without the limit
            driver.execute_script("document.getElementById('note').value = 'long '.repeat(20001)")
        else:
            driver.execute_script("""
                const real = window.fetch;
                window.fetch = async (path, options) => path === '/api/labels'
                  ? new Response('{"error": {"message": "The body is larger."}}', { status: 413 }) : real(path, options);
                document.getElementById('note').value = 'long ';""")
        before = task_key(driver)
        press(driver, "2", ENTER)
        until(lambda: "kept here" in text(driver, "notice"))
        assert task_key(driver) == before and collection.labels() == []
        driver.refresh()
        until(lambda: shown(driver, "task"))
        assert driver.execute_script("return Object.keys(localStorage).filter(k => k.includes('outbox')).length") == 0
        assert driver.execute_script("return document.getElementById('note').value").startswith("long ")
        assert not shown(driver, "notice")
        driver.execute_script("document.getElementById('note').value = 'short'")
        answer(driver, "2")
        assert driver.execute_script("return Object.keys(localStorage).filter(k => k.includes('refused')).length") == 0
    assert [label.note for label in collection.labels()] == ["short"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 320])
def test_the_page_fits_its_window_and_has_no_error(tmp_path, width, dark):
    collection, tokens = collection_of(tmp_path / "c.db", 2, ["ada"])
    with Server(tmp_path / "c.db") as server, chromium(width=width, dark=dark) as driver:
        enter(driver, server.url, tokens["ada"])
        press(driver, "2", "r", ESCAPE, "?")
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        driver.save_screenshot(str(tmp_path / f"page-{width}-{'dark' if dark else 'light'}.png"))
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    collection.close()
