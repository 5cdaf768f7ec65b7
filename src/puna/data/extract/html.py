"""One page of HTML to text, and what the page says about its use.

`resiliparse` (default) keeps code blocks and the alternative texts of pictures; TeX in MathJax scripts and in MathML
annotations becomes `$...$` before the markup goes. `trafilatura` is cleaner on news articles and ten times slower.
Neither keeps markdown markers: Llama 3 (arXiv:2407.21783, section 3.1.1) found that they hurt a model trained on web
text. Rights that a page declares (`robots`, `tdm-reservation`, `rel="license"`) are returned beside the text.
"""

import codecs
import re
from typing import Any, Literal

from puna.core.config import Config
from puna.core.errors import need

Extractor = Literal["resiliparse", "resiliparse whole page", "trafilatura", "trafilatura precision"]

_HEAD_BYTES = 1 << 16
_META = re.compile(rb"<meta\s[^>]{0,400}>", re.IGNORECASE)
_NAME = re.compile(rb"\b(?:name|http-equiv)\s*=\s*[\"']?([\w:-]+)", re.IGNORECASE)
_CONTENT = re.compile(rb"\bcontent\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))", re.IGNORECASE)
_LICENCE = re.compile(rb"<(?:a|link)\s[^>]{0,400}\brel\s*=\s*[\"']?[^\"'>]*\blicense\b[^>]{0,400}>", re.IGNORECASE)
_HREF = re.compile(rb"\bhref\s*=\s*[\"']?([^\"'\s>]+)", re.IGNORECASE)
_CREATIVE = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)", re.IGNORECASE)
_BOTS = {b"robots", b"googlebot", b"ccbot", b"gptbot"}


class ExtractionConfig(Config):
    """How pages become text."""

    extractor: Extractor = "resiliparse"
    """`resiliparse` takes the main content, `resiliparse whole page` everything that is shown; `trafilatura` is cleaner
    on articles and ten times slower."""
    timeout_seconds: float = 20.0
    """A page that takes longer is quarantined."""
    memory_mib: int = 2048
    """A page that needs more memory is quarantined."""


def extract(html: bytes, charset: str, extractor: Extractor) -> dict[str, Any]:
    """Text and declared rights of a page.

    Args:
        html: The page's bytes.
        charset: Encoding that the server declared, or "".
        extractor: Which extractor to use.

    Returns:
        `text`, and where the page declares them `licence`, `robots`, `tdm_reservation`.
    """
    rights = declared_rights(html[:_HEAD_BYTES], html)
    parse = need("resiliparse.parse.html", extra="data")
    encoding = need("resiliparse.parse.encoding", extra="data")
    chosen = known_charset(charset) or (
        "utf-8" if _is_utf8(html) else encoding.detect_encoding(html, from_html_meta=True)
    )
    if extractor.startswith("trafilatura"):
        trafilatura = need("trafilatura", extra="trafilatura")
        page = encoding.bytes_to_str(html, chosen)
        precision = extractor.endswith("precision")
        text = trafilatura.extract(page, fast=not precision, favor_precision=precision, include_comments=False) or ""
        return {"text": text, **rights}
    tree = parse.HTMLTree.parse_from_bytes(html, chosen)
    if b"math/tex" in html or b"<math" in html:
        _write_out_math(tree)
    plain = need("resiliparse.extract.html2text", extra="data")
    main = extractor == "resiliparse"
    text = plain.extract_plain_text(
        tree, preserve_formatting=True, main_content=main, list_bullets=False, alt_texts=True, noscript=False
    )
    return {"text": text, **rights}


def _is_utf8(html: bytes) -> bool:
    try:
        html.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True  # other encodings than ASCII almost never look like it


def known_charset(name: str) -> str:
    """A declared charset if there is such a codec, else ""; servers write anything there."""
    try:
        codecs.lookup(name.partition(",")[0].strip())
    except (LookupError, ValueError):
        return ""
    return name.partition(",")[0].strip()


def _write_out_math(tree: Any) -> None:
    body = tree.body
    if body is None:
        return
    for node in body.query_selector_all('script[type^="math/tex"]'):
        _replace(tree, node, node.text, display="display" in (node.getattr("type") or ""))
    for node in body.query_selector_all("math"):
        notes = [
            n for n in node.get_elements_by_tag_name("annotation") if "tex" in (n.getattr("encoding") or "").lower()
        ]
        if notes:
            _replace(tree, node, notes[0].text, display=node.getattr("display") == "block")


def _replace(tree: Any, node: Any, tex: str, *, display: bool) -> None:
    mark = "$$" if display else "$"
    node.parent.replace_child(tree.create_text_node(f" {mark}{tex.strip()}{mark} "), node)


def declared_rights(head: bytes, html: bytes) -> dict[str, str]:
    """What a page says about its use: robots words, text-and-data-mining reservation, licence."""
    found: dict[str, str] = {}
    for tag in _META.findall(head):
        name, content = _NAME.search(tag), _CONTENT.search(tag)
        if not name or not content:
            continue
        value = next(group for group in content.groups() if group is not None).decode("latin-1").strip().lower()
        key = name.group(1).lower()
        if key in _BOTS:
            found["robots"] = ", ".join(filter(None, [found.get("robots"), value]))
        elif key == b"tdm-reservation":
            found["tdm_reservation"] = value
    if (link := _LICENCE.search(html)) and (href := _HREF.search(link.group())):
        found["licence"] = licence_name(href.group(1).decode("latin-1"))
    return found


def licence_name(address: str) -> str:
    """SPDX identifier of a Creative Commons address; any other address as it is."""
    match = _CREATIVE.search(address)
    if not match:
        return address
    family, name, version = match.groups()
    if family.lower() == "publicdomain":
        return f"CC0-{version}" if name.lower() == "zero" else "CC-PDDC"
    return f"CC-{name.upper()}-{version}"
