"""Quality classifiers on real labels: how well do the linear one and the small transformer tell texts apart?

    python benchmarks/quality.py --quick --json

Three questions: is a passage from an encyclopedia or from a crawl (`quality`), is a message spam, is a comment toxic.
Equal texts are never on both sides of a split. Pages are split by page: each fold holds one Wikipedia page and a share
of the crawl pages out, so that no page is known by its subject. Every figure is of texts that were not seen.
`--data` names the folder with the labelled files; without it there is nothing to measure.
"""

import argparse
import csv
import gzip
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from puna.core.errors import need
from puna.core.run_folder import RunFolder
from puna.data.quality.calibrate import auc, figures, fit_calibration
from puna.data.quality.labelled import Example, split, texts_and_labels
from puna.data.quality.linear import LinearConfig, train_linear
from puna.stages.quality_network import train_network
from puna.stages.quality_train import NetworkConfig, NetworkTrainConfig

PASSAGE_WORDS = 120


def network_config(steps: int, rows: int, length: int) -> NetworkConfig:
    """The recipe's small transformer, for so many steps."""
    train = NetworkConfig().train.model_dump() | {"steps": steps, "log_every_steps": steps, "save_every_seconds": 1e9}
    return NetworkConfig(
        vocab_size=2048, rows=rows, sequence_length=length, train=NetworkTrainConfig.model_validate(train)
    )


def spam(data: Path) -> list[Example]:
    """SMS messages."""
    rows = [line.split("\t", 1) for line in (data / "sms-spam.tsv").read_text(encoding="utf-8").splitlines() if line]
    return [Example(text, kind == "spam") for kind, text in rows]


def toxicity(data: Path) -> list[Example]:
    """Comments of a talk page."""
    with (data / "toxicity_nonfuzzed_testset.csv").open(encoding="utf-8", newline="") as file:
        return [Example(row["comment"], row["toxic"] == "True") for row in csv.DictReader(file)]


def pages(data: Path) -> list[tuple[str, bool, list[str]]]:
    """Name, whether it is of Wikipedia, and passages of each page."""
    plain = need("resiliparse.extract.html2text", extra="data").extract_plain_text
    found = []
    for path in sorted((data / "dclm-cc-vs-wiki-html").glob("*.html.gz")):
        html = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        words = plain(html, main_content=True, alt_texts=False).split()
        passages = [" ".join(words[i : i + PASSAGE_WORDS]) for i in range(0, max(1, len(words)), PASSAGE_WORDS)]
        found.append((path.name, path.name.startswith("wikipedia"), passages[:60]))
    for path in sorted(data.glob("dolma-cc_en_head-*.jsonl.gz")):
        for number, line in enumerate(gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()):
            words = json.loads(line)["text"].split()
            passages = [" ".join(words[i : i + PASSAGE_WORDS]) for i in range(0, max(1, len(words)), PASSAGE_WORDS)]
            found.append((f"{path.name}:{number}", False, passages[:20]))
    return found


def by_split(examples: list[Example], steps: int, *, length: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of both classifiers on the test part."""
    parts = split(examples)
    train, validation, test = (texts_and_labels(part) for part in (parts.train, parts.validation, parts.test))
    linear = train_linear(*train, LinearConfig())
    outcome = []
    start = time.process_time()
    odds = linear.log_odds(test[0])
    rate = len(test[0]) / max(1e-9, time.process_time() - start)
    outcome.append(figures(odds, test[1], fit_calibration(linear.log_odds(validation[0]), validation[1])))
    with tempfile.TemporaryDirectory() as folder:
        network = train_network(*train, network_config(steps, 8, length), RunFolder(folder))
        calibration = fit_calibration(network.log_odds(validation[0]), validation[1])
        outcome.append(figures(network.log_odds(test[0]), test[1], calibration))
    outcome[0]["texts_per_cpu_s"] = rate
    return outcome[0], outcome[1]


def by_page(found: list[tuple[str, bool, list[str]]], steps: int, folds: int) -> tuple[float, float, int]:
    """AUC of both over passages of pages that were held out, all folds together."""
    good, bad = [p for p in found if p[1]], [p for p in found if not p[1]]
    odds: tuple[list[float], list[float]] = ([], [])
    labels: list[bool] = []
    for fold in range(folds):
        held = {p[0] for group in (good, bad) for i, p in enumerate(group) if i % len(good) == fold}
        train = [(text, page[1]) for page in found if page[0] not in held for text in page[2]]
        test = [(text, page[1]) for page in found if page[0] in held for text in page[2]]
        texts, truth = [t for t, _ in train], np.array([y for _, y in train])
        scores = [train_linear(texts, truth, LinearConfig()).log_odds([t for t, _ in test])]
        with tempfile.TemporaryDirectory() as folder:
            network = train_network(texts, truth, network_config(steps, 8, 256), RunFolder(folder))
            scores.append(network.log_odds([t for t, _ in test]))
        for kind, values in zip(odds, scores, strict=True):
            kind.extend(values.tolist())
        labels += [y for _, y in test]
    truth = np.array(labels)
    return auc(np.array(odds[0]), truth), auc(np.array(odds[1]), truth), len(truth)


def main() -> None:
    """Train and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/corpus/labelled"))
    arguments = parser.parse_args()
    result: dict[str, float] = {}
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not there; name the folder of labelled texts with --data")
    else:
        steps = 24 if arguments.quick else 250
        lines = []
        for name, examples, length in (
            ("spam", spam(arguments.data), 256),
            ("toxicity", toxicity(arguments.data), 256),
        ):
            linear, network = by_split(examples, steps, length=length)
            for kind, row in (("linear", linear), ("transformer", network)):
                result[f"{name}_{kind}"] = row["auc"]
                lines.append(
                    f"{name:9} {kind:12} AUC {row['auc']:.4f}  accuracy {row['accuracy']:.3f}  calibration error "
                    f"{row['calibration_error']:.3f} (before {row['calibration_error_before']:.3f})  n {row['n']:.0f}"
                )
            lines.append(f"{name:9} linear scores {linear['texts_per_cpu_s']:,.0f} texts per CPU second")
        found = pages(arguments.data)
        linear_auc, network_auc, n = by_page(found, steps, 2 if arguments.quick else 5)
        result |= {"quality_linear": linear_auc, "quality_transformer": network_auc}
        lines.append(
            f"quality   linear AUC {linear_auc:.4f}, transformer AUC {network_auc:.4f}, n {n} passages, by page"
        )
        print("\n".join(lines))
    if arguments.json:
        print(json.dumps({"auc": result}))


if __name__ == "__main__":
    main()
