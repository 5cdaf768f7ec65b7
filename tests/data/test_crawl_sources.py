import gzip
import http.server
import io
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import zstandard
from pydantic import TypeAdapter

from puna.core.errors import CorruptError, MissingError
from puna.data.places import open_binary
from puna.data.sources import SourceEntry, read_task, tasks_of
from puna.data.sources.crawl_list import choose, list_address, read_list
from puna.data.sources.warc_records import http_response, read_records, record_at

DATA = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
ODD = DATA / "corpus" / "warc"
TEXT = "This page number {0} has a paragraph that is long enough to be its main content. " * 5


def _read(**values):
    config = TypeAdapter(SourceEntry).validate_python({"name": "source", **values})
    problems = []
    return [d for task in tasks_of(config) for d in read_task(config, task, problems.append)], problems


def _record(i: int) -> bytes:
    body = f"<html><body><main><p>{TEXT.format(i)}</p></main></body></html>".encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nX-Robots-Tag: noai\r\n\r\n"
    block = head + body
    headers = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{i}\r\nWARC-Date: 2024-04-18T0{i}:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{i}>\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return headers.encode() + block + b"\r\n\r\n"


def _records(path: Path):
    problems = []
    return list(read_records(partial(open_binary, path), lambda *p: problems.append(p))), problems


@pytest.mark.parametrize("form", ["plain", "gz", "one member", "zst", "lz4"])
def test_every_compression_gives_the_same_pages(tmp_path, form):
    records = [_record(i) for i in range(4)]
    name, data = {
        "plain": lambda: ("a.warc", b"".join(records)),
        "gz": lambda: ("a.warc.gz", b"".join(map(gzip.compress, records))),
        "one member": lambda: ("a.warc.gz", gzip.compress(b"".join(records))),
        "zst": lambda: ("a.warc.zst", b"".join(map(zstandard.compress, records))),
        "lz4": lambda: ("a.warc.lz4", b"".join(map(pytest.importorskip("lz4.frame").compress, records))),
    }[form]()
    (tmp_path / name).write_bytes(data)
    documents, problems = _read(kind="warc", path=tmp_path)
    assert not problems
    assert [d.url for d in documents] == [f"http://example.org/{i}" for i in range(4)]
    assert documents[1].date == "2024-04-18T01:00:00Z"
    assert documents[1].metadata["robots"] == "noai"
    for document in documents:
        record = record_at(partial(open_binary, tmp_path / document.file), document.offset)
        assert record.url == document.url


def test_records_that_are_no_page_are_counted_by_their_kind(tmp_path):
    page = _record(0)
    redirect = page.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 301 No")
    image = page.replace(b"Content-Type: text/html; charset=utf-8", b"Content-Type: image/png;  charset=utf8")
    revisit = page.replace(b"WARC-Type: response", b"WARC-Type: revisit ")
    (tmp_path / "a.warc").write_bytes(page + redirect + image + revisit)
    (tmp_path / "b.warc").write_bytes(b"")
    (tmp_path / "c.warc").symlink_to(tmp_path / "nowhere")
    documents, told = _read(kind="warc", path=tmp_path)
    assert len(documents) == 1
    assert [one.reason for one in told] == [
        "HTTP status 301",
        "content type image",
        "record revisit",
        "empty file",
        "unreadable",
    ]
    assert [d.url for d in _read(kind="warc", path=tmp_path / "a.warc", statuses=[])[0]] == [documents[0].url] * 2


@pytest.mark.parametrize("form", ["gz", "plain"])
def test_records_behind_the_damage_survive_too(tmp_path, form):
    records = [_record(i) for i in range(4)]
    pieces = [bytearray(gzip.compress(r) if form == "gz" else r) for r in records]
    if form == "gz":
        pieces[1][40:60] = b"\xff" * 20
    else:
        pieces[1][:8] = b"BROKEN!!"
    (tmp_path / "a.warc").write_bytes(b"".join(pieces))
    found, problems = _records(tmp_path / "a.warc")
    assert {0, 2, 3} <= {int(r.url[-1]) for r in found}
    assert len(problems) == 1


def test_odd_archives_give_every_good_record_and_crash_nothing():
    """Records of each file, and places of damage; what FastWARC alone reads is the least."""
    if not ODD.is_dir():
        pytest.skip(f"{ODD} is not there; set PUNA_TEST_DATA")
    expected = {
        "daft-example.warc.gz": (30, 0),  # one gzip member for all
        "resiliparse-clipped.warc.gz": (0, 1),
        "resiliparse-warcfile.warc.lz4": (50, 0),
        "warcio-example-trunc.warc": (4, 1),  # one record more than FastWARC alone: it lies behind the damage
        "warcio-example.arc.gz": (0, 1),  # ARC, the format before WARC
        "pywb-iana.warc.gz": (343, 0),
    }
    warc = pytest.importorskip("fastwarc.warc")
    for path in sorted(ODD.iterdir()):
        found, problems = _records(path)
        if path.name in expected:
            assert (len(found), len(problems)) == expected[path.name], path.name
        alone = 0
        with path.open("rb") as file:
            try:
                for record in warc.ArchiveIterator(file, parse_http=False):
                    alone += len(record.reader.read()) == record.content_length
            except OSError:
                pass
        assert len(found) >= alone, path.name


def test_bodies_lose_their_chunks_and_compression_and_lying_headers_are_seen_through():
    brotli = pytest.importorskip("brotli")
    html = b"<html>" + b"text " * 50
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    for coding, body in (
        ("gzip", gzip.compress(html)),
        ("br", brotli.compress(html)),
        ("zstd", zstandard.compress(html)),
    ):
        block = head + f"Content-Encoding: {coding}\r\n\r\n".encode()
        assert http_response(block + body).body == html
        if coding != "zstd":
            assert http_response(block + html).body == html  # the crawler unpacked it and left the header
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert http_response(chunked + b"6\r\n<html>\r\n4;x=y\r\ntext\r\n0\r\n\r\n").body == b"<html>text"
    assert http_response(chunked + html).body == html
    with pytest.raises(ValueError, match="not known"):
        http_response(head + b"Content-Encoding: rot13\r\n\r\nabc")
    assert http_response(b"no http at all") is None


def test_a_code_tree_is_what_git_would_track(tmp_path):
    files = {
        ".gitignore": "*.log\nout/\n!keep.log\n",
        "LICENSE": "Permission is hereby granted, free of charge, to any person obtaining a copy",
        "a.py": "x = 1\n", "out/b.py": "y = 1\n", "sub/.gitignore": "secret.py\n", "sub/secret.py": "k = 1\n",
        "sub/c.go": "package c\n", "sub/LICENSE": "Apache License\nVersion 2.0", ".git/d.py": "z = 1\n", "e.bin": "?", "Makefile": "all:\n",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    documents, problems = _read(kind="code_tree", path=tmp_path)
    assert not problems
    assert [(d.url, d.language, d.licence) for d in documents] == [
        ("Makefile", "makefile", "MIT"), ("a.py", "python", "MIT"), ("sub/c.go", "go", "Apache-2.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("LICENSE", "Copyright (c) 2017 GitHub\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy", "MIT"),
        ("COPYING", "  Apache License\n      Version 2.0, January 2004", "Apache-2.0"),
        ("MIT-LICENSE.txt", "Redistribution and use in source\nand binary forms ... Neither the\nname of", "BSD-3-Clause"),
        ("README", "Permission is hereby granted", ""),
    ],
)  # fmt: skip
def test_a_licence_is_known_by_its_text_however_its_lines_break(tmp_path, name, text, licence):
    (tmp_path / name).write_text(text)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("# SPDX-License-Identifier: GPL-2.0-only WITH Classpath-exception-2.0\n")
    documents, _ = _read(kind="code_tree", path=tmp_path)
    assert [d.licence for d in documents] == [licence, "GPL-2.0-only WITH Classpath-exception-2.0"]


def test_a_folder_of_html_is_read_like_an_archive(tmp_path):
    (tmp_path / "a.html").write_text(f"<html><body><main><p>{TEXT.format(1)}</p></main></body></html>")
    (tmp_path / "empty.html").write_text("")
    documents, _ = _read(kind="html", path=tmp_path, base_url="https://example.org/")
    assert [d.url for d in documents] == ["https://example.org/a.html"]
    assert "<p>" not in documents[0].text


def test_a_saved_data_set_is_read_from_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one", "two"], "url": ["u1", "u2"]}).save_to_disk(str(tmp_path / "set"))
    documents, problems = _read(kind="huggingface", path=tmp_path / "set")
    assert not problems
    assert [(d.text, d.url) for d in documents] == [("one", "u1"), ("two", "u2")]
    with pytest.raises(MissingError, match="neither a folder nor the name"):
        _read(kind="huggingface", path="no-such-folder")


@pytest.fixture
def server(tmp_path):
    """A local server over `tmp_path` that knows ranges, as Common Crawl's does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data, status, headers = path.read_bytes(), 200, {}
            if (wanted := self.headers.get("Range", "")).startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                start, stop = int(first), int(last) + 1 if last else len(data)
                headers = {"Content-Range": f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"}
                data, status = data[start:stop], 206
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(data), "Accept-Ranges": "bytes"}.items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(data)

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.mark.filterwarnings("ignore")
def test_a_crawl_list_is_fetched_sampled_and_its_files_are_read_where_they_are(tmp_path, server):
    pytest.importorskip("aiohttp")
    names = [f"crawl-data/CC-MAIN-2024-18/segments/{i}.warc.gz" for i in range(3)]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(_record(i)))
    listed = tmp_path / "crawl-data" / "CC-MAIN-2024-18" / "warc.paths.gz"
    listed.write_bytes(gzip.compress("\n".join(names).encode()))
    assert list_address("CC-MAIN-2024-18", base=server) == f"{server}crawl-data/CC-MAIN-2024-18/warc.paths.gz"
    assert read_list(list_address("CC-MAIN-2024-18", base=server)) == names
    documents, problems = _read(kind="crawl_list", list=str(listed), path=server)
    assert not problems
    assert [d.url for d in documents] == [f"http://example.org/{i}" for i in range(3)]
    assert documents[0].file == names[0]


def test_a_sample_of_a_list_does_not_depend_on_its_order(tmp_path):
    paths = [f"p{i}" for i in range(100)]
    assert set(choose(paths, 10)) == set(choose(paths[::-1], 10))
    assert choose(paths, 10) == sorted(choose(paths, 10), key=paths.index)
    with pytest.raises(MissingError, match="cannot be read"):
        read_list(str(tmp_path / "nothing"))
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(CorruptError, match="damaged"):
        read_list(str(tmp_path / "bad.gz"))


def test_an_open_file_is_a_stream(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with open_binary(tmp_path / "a") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.read() == b"abc"
