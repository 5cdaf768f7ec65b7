"""Records for pages that are looked at: long words, long licences, copies, addresses to mask."""

import json
import random
from pathlib import Path

LONG_LICENCE = "a-licence-" + "without-any-place-to-break-it" * 3


def write_pages(path: Path) -> None:
    """Forty records as JSON Lines."""
    rng = random.Random(0)
    rows = []
    for i in range(40):
        words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(60)]
        text = " ".join(words) + (" write to a@example.org" if i % 5 == 0 else "") + " " + "x" * (200 * (i % 9 == 0))
        rows.append(
            {"text": text, "url": f"https://example.org/{'path/' * 20}{i}", "license": LONG_LICENCE, "language": "en"}
        )
    rows += [{**rows[1], "url": "https://example.org/again"}, {"text": "short", "url": "u"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
