"""The place where a guard plugs in: one look at the dialog before any work, looks at the answer before it is shown.

`safety/` brings real guards. The server has none by default. A verdict always carries its reason, which the client sees
as the message's `refusal`, with `finish_reason` `content_filter`.
"""

from dataclasses import dataclass
from typing import Protocol

from puna.core.dialog import Dialog


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What a guard says.

    Attributes:
        allowed: Whether the text may pass.
        reason: A sentence for the person who reads the answer; empty when allowed.
        category: The guard's own name of what it saw, for the report.
    """

    allowed: bool
    reason: str = ""
    category: str = ""


ALLOWED = GuardVerdict(allowed=True)


class Guard(Protocol):
    """Judges dialogs and answers. Called from several threads."""

    def check_input(self, dialog: Dialog) -> GuardVerdict:
        """Judge what the user sent, before anything is generated."""
        ...

    def check_output(self, dialog: Dialog, answer: str) -> GuardVerdict:
        """Judge the answer so far. It is called again as the answer grows, and always on the whole answer."""
        ...
