"""What can be set about a collection: quotas, test questions, repeats, and what the page offers."""

from pydantic import Field

from puna.core.config import Config

REASONS = (
    "more correct",
    "more helpful",
    "follows the instruction",
    "better reasoning",
    "better style",
    "safer",
    "shorter, nothing missing",
    "formatting",
)
GUIDELINE = """\
Read the question, then both answers, and choose the one that you would rather have received.

Correct beats complete, complete beats pretty. A longer answer is not a better one. If both are wrong, choose the one
that is less wrong; if you cannot tell, skip. Flag what should not be here: a broken or harmful item, private data.
"""


class CollectionSettings(Config):
    """Settings of a collection of preferences."""

    overlap: int = Field(default=3, ge=1)
    """Different people who judge each item."""
    gold_rate: float = Field(default=0.1, ge=0.0, le=0.5)
    """Share of tasks that are test questions with a known answer; they look like any other."""
    repeat_rate: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of tasks that the same person saw before, with the answers on the other side."""
    repeat_gap: int = Field(default=10, ge=1)
    """Tasks that must lie between an item and its repeat."""
    lease_minutes: float = Field(default=60.0, gt=0)
    """How long a task that was handed out counts for the quota although it is not answered."""
    flag_limit: int = Field(default=2, ge=1)
    """An item that this many people flagged is handed out no more."""
    gate_min_gold: int = Field(default=8, ge=1)
    """Test questions before the gate may close."""
    gate_window: int = Field(default=20, ge=1)
    """The gate looks at this many last test questions."""
    gate_accuracy: float = Field(default=0.6, ge=0.0, le=1.0)
    """A person below this share of right test questions gets no more tasks until an admin says so; 0 keeps it open."""
    allow_edit: bool = True
    """Offer to improve the preferred answer."""
    reasons: tuple[str, ...] = REASONS
    """Reasons that can be ticked."""
    seed: int = 0
    """Seed of sides, test questions and repeats."""
