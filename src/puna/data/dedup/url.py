"""One document an address: of several captures of a page the newest stays.

Two addresses are the same when they differ in scheme, `www.`, letter case of the host, default port, fragment, a slash
at the end, the order of query fields, or fields that only track. Addresses that are no URLs (paths of files) are not
looked at.

Source: The Llama 3 Herd of Models (2407.21783), section 3.1.1: "We keep the most recent version for pages corresponding
to each URL."
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puna.data.dedup import earlier, twins
from puna.data.dedup.places import Places
from puna.data.document import Document
from puna.data.documents import numpy_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Question, StepConfig

_TRACKING = (
    "utm_",
    "fbclid",
    "gclid",
    "dclid",
    "msclkid",
    "mc_cid",
    "mc_eid",
    "igshid",
    "phpsessid",
    "jsessionid",
    "sid=",
)
_BYTES_PER_KEY = 96


class UrlConfig(StepConfig):
    """One document an address."""

    kind: Literal["url"] = "url"
    """Which kind of step this is."""
    keep: Literal["newest", "first", "longest"] = "newest"
    """Which capture stays."""
    against: Path | None = None
    """A corpus made before with `save_index`, or a folder of such: its addresses are never taken again."""
    save_index: bool = False
    """Keep the addresses of what stays, for a later `against`."""
    memory_mib: int = 512
    """Memory for one bucket of addresses."""


def normal_url(url: str) -> str:
    """The form that equal addresses share; empty for what is no URL."""
    scheme, mark, rest = url.strip().partition("://")
    if not mark or not scheme.isalnum():
        return ""
    rest = rest.partition("#")[0]
    place, _, query = rest.partition("?")
    host, _, path = place.partition("/")
    host = host.rpartition("@")[2].lower().removeprefix("www.")
    host = host.removesuffix(":80" if scheme.lower() == "http" else ":443").rstrip(".")
    fields = sorted(f for f in query.split("&") if f and not f.lower().startswith(_TRACKING)) if query else []
    return f"{host}/{path.rstrip('/')}" + ("?" + "&".join(fields) if fields else "")


def features(documents: Sequence[Document], config: UrlConfig) -> Mapping[str, Any]:
    """`key`: 64 bits of the normal address, 0 where there is none."""
    keys = np.zeros(len(documents), dtype=np.uint64)
    for place, document in enumerate(documents):
        normal = normal_url(document.url) if config.applies(document) else ""
        if normal:
            digest = hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            keys[place] = int.from_bytes(digest, "little") | 1
    return {"key": keys}


def decide(question: Question[UrlConfig]) -> Iterator[Decision]:
    """In each group of one address, the preferred document stays."""
    config = question.config
    settings = earlier.parameters(config, ("kind",))
    places = Places.of(question.parts, question.scratch, earlier.open_indexes(config.against, "url", settings))
    n = places.n_documents
    choice = twins.Choice(np.ones(n, dtype=bool), np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.float32))
    n_buckets = max(1, -(-n * _BYTES_PER_KEY // (config.memory_mib << 20)))
    for bucket in range(n_buckets):
        numbers, stays = _bucket(places, bucket, n_buckets, config.keep)
        choice.keep[numbers], choice.twin[numbers], choice.score[numbers] = False, stays, 1.0
    twins.report(question.report, places, choice)
    if config.save_index:
        earlier.save_index(question.report / "index", question.parts, choice, places, settings)
    reason = "url: older copy" if config.keep == "newest" else "url: further copy"
    yield from twins.decisions(places, choice, reason=reason, earlier_reason="url: seen before")


def _bucket(
    places: Places, bucket: int, n_buckets: int, keep: twins.Keep
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the documents that go, and of those that stay for them."""
    all_keys, all_numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, path in enumerate(places.features):
        keys = numpy_column(read_arrow(path), "key")
        rows = np.flatnonzero((keys != 0) & (keys // np.uint64(2) % np.uint64(n_buckets) == bucket) & places.mask(part))
        all_keys.append(keys[rows])
        all_numbers.append(rows + places.starts[part])
    keys, numbers = np.concatenate(all_keys), np.concatenate(all_numbers)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    same = np.zeros(len(keys) + 1, dtype=bool)
    same[1:-1] = keys[1:] == keys[:-1]
    several = same[:-1] | same[1:]
    keys, numbers = keys[several], numbers[several]
    turn = np.empty(len(numbers), dtype=np.int64)
    turn[twins.preference(places, numbers, keep)] = np.arange(len(numbers))
    order = np.lexsort((turn, keys))
    keys, numbers = keys[order], numbers[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    winner = numbers[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))] if len(keys) else numbers
    gone = ~new & (numbers >= places.first_new)
    return numbers[gone], winner[gone]


URL = Barrier(
    config=UrlConfig, features=features, decide=decide, judged_by=("keep", "against", "save_index", "memory_mib")
)
