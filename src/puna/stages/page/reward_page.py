"""What a reward model is worth, as a page and on the console: accuracy by strength, calibration, length, verdict."""

from pathlib import Path

from puna.core import console, files
from puna.evaluate.statistics import Estimate
from puna.post.reward_check import CheckReport
from puna.stages.page import charts, html
from puna.stages.page.html import Section

PAGE = "check.html"
ORDER = ("significantly_better", "better", "slightly_better", "marginally_better", "unknown")


def write(path: Path, report: CheckReport, *, title: str) -> None:
    """Write the page.

    Args:
        path: The file.
        report: Figures and verdict.
        title: Heading.
    """
    verdict = "Every check is passed." if report.passed else "It should not be used: a check is not passed."
    tiles = html.tiles(
        [
            (f"{report.accuracy.value:.1%}", f"of {report.accuracy.n} held-out pairs in the right order"),
            (f"{report.calibration_error:.3f}", "expected calibration error"),
            (f"{report.length_correlation:+.2f}", "correlation of score and length"),
        ]
    )
    sections = [_checks(report), _accuracy(report), _calibration(report), _length(report)]
    with files.atomic_open(path) as file:
        file.write(html.document(title, verdict, tiles, sections))


def _checks(report: CheckReport) -> Section:
    rows = [[check.name, "passed" if check.passed else "not passed", check.reason] for check in report.checks]
    return Section("checks", "Checks", html.table(["check", "verdict", "figure and what is asked"], rows))


def _accuracy(report: CheckReport) -> Section:
    named = [("all", report.accuracy)]
    named += [(name.replace("_", " "), report.by_strength[name]) for name in ORDER if name in report.by_strength]
    if len(report.by_source) > 1:
        named += [(f"from {name}", value) for name, value in report.by_source.items()]
    rows = [(name, [charts.Dot(e.value, e.low, e.high)]) for name, e in named]
    chart = charts.interval_chart("Accuracy by strength", rows, series=["in the right order"])
    table = html.table(["pairs", "n", "accuracy"], [[n, e.n, figure(e)] for n, e in named], numeric=[1])
    note = (
        "A pair is right when the better answer has the higher score; equal scores are wrong. Bars are 95 % intervals."
    )
    return Section("accuracy", "Accuracy by strength", html.paragraph(note) + chart + table)


def _calibration(report: CheckReport) -> Section:
    curve = charts.Line("the model", [(c, right) for c, right, _ in report.bins])
    ideal = charts.Line("as confident as right", [(0.5, 0.5), (1.0, 1.0)])
    chart = charts.line_chart("Calibration", [curve, ideal], x_label="confidence", y_label="share right")
    rows = [[f"{c:.2f}", f"{right:.1%}", n] for c, right, n in report.bins]
    note = (
        "Confidence is the logistic function of the score difference. Above the diagonal the model knows more than it "
        "says, below it says more than it knows."
    )
    table = html.table(["confidence", "share right", "pairs"], rows, numeric=[0, 1, 2])
    return Section("calibration", "Calibration", html.paragraph(note) + chart + table)


def _length(report: CheckReport) -> Section:
    rows = [
        ["the better answer is the longer one", figure(report.longer)],
        ["the better answer is the shorter one", figure(report.shorter)],
        ['the rule "longer is better", for comparison', figure(report.longer_rule)],
        ["correlation of score difference and length difference", f"{report.length_correlation:+.3f}"],
        ["spread of scores among the answers to one prompt", f"{report.spread_within:.3f}"],
        ["spread of mean scores between prompts", f"{report.spread_between:.3f}"],
    ]
    note = "A reward model that learned length is right on one of the first two rows and wrong on the other."
    return Section("length", "Length", html.paragraph(note) + html.table(["pairs", "figure"], rows))


def figure(estimate: Estimate | None) -> str:
    """A share with its interval."""
    return (
        "-" if estimate is None else f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}] of {estimate.n}"
    )


def tell(report: CheckReport) -> None:
    """The checks on the console."""
    rows = [(check.name, "passed" if check.passed else "NOT passed", check.reason) for check in report.checks]
    console.table("is the reward model good enough?", ["check", "verdict", "figure and what is asked"], rows)
