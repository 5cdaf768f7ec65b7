"""Language identification over many languages, and what the multilingual recipe keeps of them.

The Universal Declaration of Human Rights in 500 languages and variants (a tar file of XML, `--data`). Two questions:

accuracy    each declaration whole, and each of its paragraphs of 100 characters and more alone; over the languages that
            the model knows, and over all, where a language that it does not know can only be wrong
kept        every declaration as three pages of a web archive, through `recipes/curate/multilingual.toml` as it stands:
            how many languages come out, with how many documents each, and how many of them carry the right label

    python benchmarks/languages.py --json
    python benchmarks/languages.py --quick --json            a paragraph of five
    python benchmarks/languages.py --model lid.176.ftz       a fastText model instead
"""

import argparse
import html
import json
import os
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate
from puna.data.funnel import funnel
from puna.data.steps.language import LanguageConfig, identify, known_languages
from puna.data.warc_writer import Page, write_warc

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
UDHR = HOME / "corpus" / "multilingual" / "udhr-xml-513.tar.gz"
RECIPE = Path(__file__).parents[1] / "recipes" / "curate" / "multilingual.toml"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
SAME = {
    "nb": "no", "als": "sq", "zlm": "ms", "kmr": "ku", "fil": "tl", "prs": "fa", "pes": "fa", "uzn": "uz", "cmn": "zh",
    "hbs": "sr", "tgl": "tl", "ekk": "et", "lvs": "lv", "swh": "sw", "fuf": "fuv", "gn": "gug",
}  # fmt: skip
"""Tags of the declarations that name what the model calls otherwise: members of a macrolanguage, older tags."""
PARAGRAPH = 100


@dataclass(frozen=True)
class Declaration:
    """One language's text.

    Attributes:
        key: Name of the file, `deu_1996`.
        language: Its tag as the model would say it.
        name: Its name in English.
        paragraphs: Of the text.
    """

    key: str
    language: str
    name: str
    paragraphs: list[str]


def declarations(path: Path) -> list[Declaration]:
    """Every declaration that has a text."""
    found = []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            file = archive.extractfile(member)
            key = Path(member.name).stem.removeprefix("udhr_")
            if file is None or not member.name.endswith(".xml") or key == "index":
                continue
            root = ElementTree.fromstring(file.read())
            tag = root.get(LANG, "").partition("-")[0]
            texts = [" ".join(text.split()) for node in root.iter() if (text := node.text or "").strip()]
            if tag and texts:
                found.append(Declaration(key, SAME.get(tag, tag), root.get("n", ""), texts))
    return found


def measure(found: list[Declaration], config: LanguageConfig, every: int) -> tuple[dict[str, float], list[str]]:
    """Accuracies, and lines about what is confused with what."""
    known = set(known_languages(config))
    right, total, confused = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    n_characters, start = 0, time.process_time()
    for declaration in found:
        kinds = ["all", *(["known"] if declaration.language in known else [])]
        said, _ = identify("\n".join(declaration.paragraphs), config)
        if said != declaration.language and len(kinds) == 2:
            confused[declaration.language, said] += 1
        for kind in kinds:
            total[f"document, {kind}"] += 1
            right[f"document, {kind}"] += SAME.get(said, said) == declaration.language
        for text in [p for p in declaration.paragraphs if len(p) >= PARAGRAPH][::every]:
            said, _ = identify(text, config)
            n_characters += len(text)
            for kind in kinds:
                total[f"paragraph, {kind}"] += 1
                right[f"paragraph, {kind}"] += SAME.get(said, said) == declaration.language
    speed = sum(total[f"{what}, all"] for what in ("document", "paragraph")) / (time.process_time() - start)
    languages = {d.language for d in found}
    lines = [
        f"{len(found)} declarations in {len(languages)} languages; the model knows {len(languages & known)} of them",
        *(f"accuracy {kind:18} {right[kind] / total[kind]:.4f}   of {total[kind]:,}" for kind in sorted(total)),
        f"{speed:,.0f} texts a CPU-second",
        "declarations of known languages taken for others: "
        + (", ".join(f"{a} -> {b}" + (f" x{n}" if n > 1 else "") for (a, b), n in confused.most_common(30)) or "none"),
    ]
    return {kind: right[kind] / total[kind] for kind in total}, lines


def pages(found: list[Declaration], per_language: int = 3) -> list[Page]:
    """Each declaration as a few pages with a third of its paragraphs each; the address says the language."""
    made = []
    for declaration in found:
        for part in range(per_language):
            begin, end = (len(declaration.paragraphs) * k // per_language for k in (part, part + 1))
            body = "".join(f"<p>{html.escape(text)}</p>\n" for text in declaration.paragraphs[begin:end])
            content = f"<!doctype html><html><body><main>\n{body}</main></body></html>"
            made.append(Page(f"https://{declaration.language}.example/{declaration.key}/{part}", content))
    return made


def through_the_recipe(found: list[Declaration], config: LanguageConfig) -> tuple[Corpus, dict[str, Counter[str]]]:
    """The recipe's steps over the pages; kept documents by true language and by label."""
    steps = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["steps"]
    for step in steps:
        if step["kind"] == "language":
            step |= config.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "crawl").mkdir()
        write_warc(folder / "crawl" / "udhr.warc.gz", pages(found), date="2024-04-18T00:00:00Z")
        source = {"kind": "warc", "name": "crawl", "path": str(folder / "crawl")}
        corpus = curate(
            CurateConfig.model_validate({"sources": [source], "steps": steps}), folder / "corpus", workers=1
        )
        kept: dict[str, Counter[str]] = {}
        for document in corpus.documents():
            true = document.url.split("//")[1].partition(".")[0]
            kept.setdefault(true, Counter())[SAME.get(document.language, document.language)] += 1
        for row in funnel(corpus):
            print(f"  {row[0]:22} {row[1]:>6} documents   {row[4]}")
        return corpus, kept


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a paragraph of five")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--data", type=Path, default=UDHR, help="tar file of declarations")
    parser.add_argument("--model", type=Path, help="a fastText model file instead of py3langid")
    options = parser.parse_args()
    if not options.data.is_file():
        raise SystemExit(f"{options.data} is not there; name the tar file of declarations with --data")
    config = LanguageConfig(engine="fasttext", model=options.model) if options.model else LanguageConfig()
    found = declarations(options.data)
    accuracy, lines = measure(found, config, 5 if options.quick else 1)
    print("\n".join(lines))
    _, kept = through_the_recipe(found, config)
    by_label = sum(kept.values(), Counter[str]())
    known = set(known_languages(config))
    right = {language: labels[language] for language, labels in kept.items() if labels[language]}
    n_known = sum(n for language, labels in kept.items() if language in known for n in labels.values())
    print(f"kept: {by_label.total()} documents in {len(by_label)} languages by label")
    print("  " + ", ".join(f"{language} {n}" for language, n in sorted(by_label.items(), key=lambda e: (-e[1], e[0]))))
    print(
        f"right label: {sum(right.values())} of {by_label.total()} documents, {sum(right.values())} of {n_known} in "
        f"languages that the model knows; {len(right)} languages have documents under their own label"
    )
    if options.json:
        result = {key.replace(", ", "_"): round(value, 4) for key, value in sorted(accuracy.items())}
        result |= {
            "languages_kept": len(by_label),
            "languages_kept_right": len(right),
            "documents_kept": by_label.total(),
            "label_precision": round(sum(right.values()) / by_label.total(), 4),
            "label_precision_known": round(sum(right.values()) / n_known, 4),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
