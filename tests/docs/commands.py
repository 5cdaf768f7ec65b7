"""Finds the commands, recipes and links that a Markdown file shows."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for p in ROOT.glob("docs/**/*.md") if "generated" not in p.parts),
        *ROOT.glob("benchmarks/*.md"),
    ]
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found = []
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start()].count("\n") + 1
        found.append(Block(page, line, match.group(1), match.group(2)))
    return found


def typed(block: Block) -> list[str]:
    """The lines of a console block that a reader types."""
    assert block.language == "console"
    return [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]


def console_lines(page: Path) -> list[tuple[Block, str]]:
    """Every typed line of a page with its block."""
    return [(block, line) for block in blocks(page) if block.language == "console" for line in typed(block)]


def words_of(line: str) -> list[str]:
    """The words of a command without what the shell does with its output."""
    return shlex.split(re.split(r" [|>] ", line)[0])


def links(page: Path) -> list[str]:
    """Targets of relative links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t) and not t.startswith("#")]
