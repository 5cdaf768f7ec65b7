import random

import pytest

from puna.data.dedup.licence_header import is_code, without_licence_header
from puna.data.dedup.semantic import SEMANTIC, SemanticConfig
from puna.data.document import Document
from tests.data.steps.barrier_bench import decide_on, kept

GRANT = [
    "Permission",
    "is",
    "hereby",
    "granted,",
    "free",
    "of",
    "charge,",
    "to",
    "any",
    "person",
    "obtaining",
    "a",
    "copy",
    "of",
    "this",
    "software",
    "and",
    "associated",
    "documentation",
    "files,",
    "to",
    "deal",
    "in",
    "the",
    "software",
    "without",
    "restriction,",
    "including",
    "without",
    "limitation",
    "the",
    "rights",
    "to",
    "use,",
    "copy,",
    "modify,",
    "merge,",
    "publish,",
    "distribute,",
    "sublicense",
    "and",
    "sell",
    "copies",
    "of",
    "the",
    "software,",
    "and",
    "to",
    "permit",
    "persons",
    "to",
    "whom",
    "the",
    "software",
    "is",
    "furnished",
    "to",
    "do",
    "so,",
    "subject",
    "to",
    "the",
    "following",
    "conditions.",
    "The",
    "software",
    "is",
    "provided",
    "as",
    "is,",
    "without",
    "warranty",
    "of",
    "any",
    "kind,",
    "express",
    "or",
    "implied,",
    "including",
    "the",
    "warranties",
    "of",
    "merchantability",
    "and",
    "fitness.",
]
LINES = ["Copyright (c) 2019 Somebody", *(" ".join(GRANT[i : i + 9]) for i in range(0, len(GRANT), 9))]


def _in(style: str) -> str:
    if style == "/*":
        return "/*\n" + "".join(f" * {line}\n" for line in LINES) + " */\n"
    if style == '"""':
        return '"""\n' + "\n".join(LINES) + '\n"""\n'
    if style == "<!--":
        return "<!--\n" + "\n".join(LINES) + "\n-->\n"
    return "".join(f"{style} {line}\n" for line in LINES)


@pytest.mark.parametrize("style", ["#", "//", "--", ";", "/*", '"""', "<!--"])
def test_the_licence_goes_and_the_code_stays(style):
    assert (
        without_licence_header(_in(style) + "code = 1  # copyright of a line\n") == "code = 1  # copyright of a line\n"
    )


def test_what_describes_the_file_stays_before_and_behind_the_licence():
    text = "#!/bin/sh\n# Adds numbers.\n\n" + _in("#") + "\n# How it adds.\necho 1\n"
    assert without_licence_header(text) == "#!/bin/sh\n# Adds numbers.\n\n\n# How it adds.\necho 1\n"
    header = _in("/*") + "/* What it declares. */\n#include <licence.h>\nint f(void);  /* licence */\n"
    assert without_licence_header(header) == header.removeprefix(_in("/*"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "int licence;\n",
        "/* a licence that never ends\nint x;\n",
        "#include <licence.h>\n#define LICENCE 1\n",
        "# just a heading\ntext about a license\n",
        "x" * 10_000 + " license",
    ],
)
def test_other_texts_are_left_alone(text):
    assert without_licence_header(text) == text


def test_a_file_that_is_all_licence_has_nothing_left_to_compare():
    assert without_licence_header(_in("//")).strip() == ""


def test_code_is_known_by_its_domain_or_its_language():
    assert is_code(Document("x", "s", "u", domain="code")) and is_code(Document("x", "s", "u", language="python"))
    assert not is_code(Document("x", "s", "u", language="de", domain="prose"))


def _headers(domain="code"):
    """Small headers, each with other names, under one very long licence; the last is a copy of the first."""
    rng = random.Random(0)

    def words(n):
        return ["".join(rng.choices("abcdefghijklmnop", k=7)) for _ in range(n)]

    legal = _in("/*") + "/* Licence, continued: " + " ".join(words(500)) + " */\n"
    bodies = [
        "".join(f"int {name}(long {arg});\n" for name, arg in zip(words(5), words(5), strict=True)) for _ in range(12)
    ]
    texts = [legal + "#pragma once\n" + body for body in [*bodies, bodies[0].replace("long", "short", 1)]]
    return [Document(text, "s", f"h{i}", domain=domain, language="c") for i, text in enumerate(texts)]


def test_headers_that_share_only_a_licence_are_no_copies_and_true_copies_still_are():
    config = SemanticConfig(cluster_documents=100, sample_documents=100, min_similarity=0.85, min_overlap=0.8)
    keep = kept(decide_on(_headers(), SEMANTIC, config))
    assert all(keep[:-1]) and not keep[-1]
    compared = config.model_copy(update={"licence_headers": "compare"})
    assert not all(kept(decide_on(_headers(), SEMANTIC, compared))[:-1])
