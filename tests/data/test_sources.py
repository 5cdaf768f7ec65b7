import gzip
import json
from email import message_from_string
from hashlib import sha256
from importlib import metadata

import pytest
import zstandard
from pydantic import TypeAdapter

from puna.core.errors import MissingError, PunaError
from puna.data.sources import SourceEntry, read_task, tasks_of
from puna.data.sources.docstrings import docstring_page
from puna.data.sources.python_packages import licence_of


def _read(**values):
    """Documents and problems of a source."""
    config = TypeAdapter(SourceEntry).validate_python({"name": "source", **values})
    problems = []
    documents = [d for task in tasks_of(config) for d in read_task(config, task, problems.append)]
    return documents, problems


def _lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_a_file_that_is_not_utf8_is_reported_with_its_offset_and_the_others_survive(tmp_path):
    (tmp_path / "good.txt").write_text("fine: é", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    documents, problems = _read(kind="folder", path=tmp_path)
    assert [d.url for d in documents] == ["good.txt"]
    assert [(p.where, p.reason, p.offset) for p in problems] == [("latin.txt", "not UTF-8", 3)]


def test_a_folder_gives_matching_files_in_order_and_no_hidden_ones(tmp_path):
    for name in ("b/two.py", "a.py", "b/.hidden.py", ".git/x.py", "build/gen.py", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    documents, _ = _read(kind="folder", path=tmp_path, include=["*.py"], exclude=["build"], domain="code")
    assert [(d.url, d.text, d.language) for d in documents] == [
        ("a.py", "x = 1\n", "python"),
        ("b/two.py", "x = 1\n", "python"),
    ]


def test_a_file_over_the_limit_is_reported(tmp_path):
    (tmp_path / "big.txt").write_text("x" * 100)
    documents, problems = _read(kind="folder", path=tmp_path, max_file_bytes=99)
    assert not documents
    assert problems[0].reason == "file too large"


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet", "warc"])
def test_a_missing_folder_and_an_empty_one_say_so(tmp_path, kind):
    with pytest.raises(MissingError, match="is not there"):
        _read(kind=kind, path=tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no file under"):
        _read(kind=kind, path=tmp_path)


def test_malformed_lines_are_reported_with_their_number_and_left_out(tmp_path):
    lines = [
        b'{"text": "one", "url": "u"}',
        b"{",
        b'{"txt": "no text"}',
        b'"text"',
        b'{"text": "\xff"}',
        b"",
        b'{"text": "two"}',
    ]
    lines.append(rb'{"text": "half a pair \ud800"}')
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, problems = _read(kind="jsonl", path=tmp_path)
    assert [(d.text, d.url) for d in documents] == [("one", "u"), ("two", "a.jsonl:7")]
    assert [p.line for p in problems] == [2, 3, 4, 5, 8]
    assert [p.detail for p in problems] == [
        "expecting property name enclosed in double quotes",
        "the text field 'text' is absent",
        'text ("text"), not an object',
        "byte 0xff: invalid start byte",
        "half of a surrogate pair, which is no character",
    ]
    assert str(problems[0]).startswith("a.jsonl:2:2: malformed line: ")
    assert {p.reason for p in problems} == {"malformed line", "not UTF-8"}


@pytest.mark.parametrize(
    ("value", "told"),
    [("5", "a number (5)"), ("null", "null"), ("true", "a truth value (true)"), ("[1]", "a list"), ("{}", "an object")],
)
def test_a_text_that_is_none_is_told_by_its_kind_in_json(tmp_path, value, told):
    (tmp_path / "a.jsonl").write_text('{"text": ' + value + "}")
    _, problems = _read(kind="jsonl", path=tmp_path)
    assert [p.detail for p in problems] == [f"the text field 'text' is {told}, not text"]


def test_too_many_malformed_lines_are_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("{\n" * 4)
    with pytest.raises(PunaError, match=r"more than 3 malformed lines in one file, the last one a\.jsonl:4"):
        _read(kind="jsonl", path=tmp_path, max_bad_lines=3)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_gives_every_record_before_the_damage(tmp_path, suffix):
    plain = _lines(*({"text": f"{i} {sha256(str(i).encode()).hexdigest()}"} for i in range(9000)))
    packed = gzip.compress(plain) if suffix == ".gz" else zstandard.compress(plain)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 6 // 10])
    documents, problems = _read(kind="jsonl", path=tmp_path)
    # gzip decodes to within its last block; zstandard works in blocks of 128 KiB
    assert len(documents) > (5000 if suffix == ".gz" else 3000)
    assert [d.text.split()[0] for d in documents] == [str(i) for i in range(len(documents))]
    assert [p.reason for p in problems] == ["damaged file"]
    assert problems[0].offset == path.stat().st_size


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_of_several_compressed_members_is_read_to_its_end(tmp_path, suffix):
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(_lines({"text": "one"})) + pack(_lines({"text": "two"})))
    documents, problems = _read(kind="jsonl", path=tmp_path)
    assert [d.text for d in documents] == ["one", "two"]
    assert not problems


def test_bytes_that_are_not_gzip_are_reported(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"this is not gzip at all")
    documents, problems = _read(kind="jsonl", path=tmp_path)
    assert not documents
    assert [(p.reason, p.offset) for p in problems] == [("damaged file", 0)]


def test_parquet_rows_become_documents_and_a_damaged_file_is_reported(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["one", None, "three"], "url": ["u1", "u2", None], "score": [1.5, 2.5, 3.5]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    documents, problems = _read(kind="parquet", path=tmp_path, metadata_fields=["score"])
    assert [(d.text, d.url, d.metadata) for d in documents] == [
        ("one", "u1", {"score": 1.5}),
        ("three", "a.parquet:3", {"score": 3.5}),
    ]
    assert [(p.where, p.reason, p.line) for p in problems] == [
        ("a.parquet", "malformed row", 2),
        ("b.parquet", "damaged file", None),
    ]


def _warc(pages):
    records = []
    for i, page in enumerate(pages):
        body = f"<html><body><main><p>{page}</p></main></body></html>".encode()
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{i}\r\n"
            f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{i}>\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        )
        records.append(gzip.compress(head.encode() + http + b"\r\n\r\n"))
    return records


@pytest.mark.parametrize(("kept_bytes", "reasons"), [(60, ["damaged record"]), (200, ["truncated record"])])
def test_warc_pages_become_text_and_the_good_ones_before_damage_survive(tmp_path, kept_bytes, reasons):
    pytest.importorskip("fastwarc")
    pages = [f"Page number {i} has a paragraph that is long enough to be its main content. " * 5 for i in range(4)]
    records = _warc(pages)
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records[:3]) + records[3][:kept_bytes])
    documents, problems = _read(kind="warc", path=tmp_path)
    assert [d.url for d in documents] == [f"http://example.org/{i}" for i in range(3)]
    assert "Page number 2" in documents[2].text
    assert "<p>" not in documents[2].text
    assert [p.reason for p in problems] == reasons


def test_docstrings_become_a_page_without_running_the_module(tmp_path):
    source = '''"""A module that must not run."""
raise SystemExit
class Thing(Base):
    """A thing that is described in one long enough line."""
    def act(self, n: int = 3) -> str:
        """Acts n times and gives back what came out of it.

            Indented.
        Not indented.
        """
    def short(self):
        "Too short."
'''
    page = docstring_page(source, "package.module", "module.py", lambda problem: None)
    assert page == (
        "# package.module\n\nA module that must not run.\n\n"
        "## class package.module.Thing(Base)\n\nA thing that is described in one long enough line.\n\n"
        "## package.module.Thing.act(self, n: int=3) -> str\n\n"
        "Acts n times and gives back what came out of it.\n\n    Indented.\nNot indented.\n"
    )


def test_a_module_that_does_not_parse_is_reported_with_its_line():
    problems = []
    assert docstring_page("x = 1\nprint 'two'\n", "m", "m.py", problems.append) is None
    assert (problems[0].reason, problems[0].line) == ("not parsable", 2)


def test_the_standard_library_gives_code_and_prose_with_its_licence():
    code = TypeAdapter(SourceEntry).validate_python({"kind": "python_stdlib", "name": "code"})
    tasks = tasks_of(code)
    parts = [part for task in tasks for part in task.parts]
    assert "json/decoder.py" in parts
    assert not any("site-packages" in part or part.startswith("test/") for part in parts)
    prose = TypeAdapter(SourceEntry).validate_python({"kind": "python_stdlib", "name": "docs", "domain": "prose"})
    one = type(tasks[0])("code", 0, ("json/decoder.py",), 1)
    (module,) = read_task(code, one, print)
    (page,) = read_task(prose, one, print)
    assert (module.licence, module.language) == ("PSF-2.0", "python")
    assert module.url.endswith("/Lib/json/decoder.py")
    assert "## json.decoder.JSONDecoder.raw_decode(self, s, idx=0)" in page.text
    assert page.language == "en"


def test_an_installed_package_gives_its_documentation_under_its_licence():
    documents, problems = _read(kind="python_packages", packages=["click", "puna"], parts=["readme", "docstrings"])
    assert not problems
    assert {d.licence for d in documents} == {"BSD-3-Clause"}
    address = f"https://pypi.org/project/click/{metadata.version('click')}/"
    assert documents[0].url == address
    assert any(d.url == f"{address}#click/decorators.py" and "click.decorators.command" in d.text for d in documents)


def test_a_package_gives_no_more_than_its_limit_and_a_missing_one_is_named():
    documents, _ = _read(kind="python_packages", packages=["click"], max_package_bytes=20_000)
    assert 0 < sum(d.n_bytes for d in documents) <= 20_000
    with pytest.raises(MissingError, match="not installed: no-such-package"):
        _read(kind="python_packages", packages=["No_Such.Package"])


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT OR Apache-2.0", "License: long"], "MIT OR Apache-2.0"),
        (["License: BSD", "Classifier: License :: OSI Approved :: BSD License"], "BSD License"),
        (["License: MIT"], "MIT"),
        ([], ""),
    ],
)
def test_the_licence_comes_from_the_clearest_field(lines, licence):
    assert licence_of(message_from_string("\n".join([*lines, "", ""]))) == licence


def test_exercises_are_seeded_counted_and_never_from_the_test_split():
    values = {"kind": "exercises", "pages": 50, "task_pages": 30, "seed": 5}
    documents, _ = _read(**values)
    again, _ = _read(**values)
    other, _ = _read(**(values | {"seed": 6}))
    assert [d.id for d in documents] == [d.id for d in again]
    assert [d.text for d in documents] != [d.text for d in other]
    assert len(documents) == 50  # in tasks of 30 and 20
    assert all(d.text.endswith("\n") and d.licence == "Apache-2.0" for d in documents)
