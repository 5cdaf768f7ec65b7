"""Batches that grow over a run: how many micro-batches make a step, as a function of the tokens seen. No torch here.

    [[ramp]]                      # Llama 3 405B
    until_tokens = 252_000_000
    batch_tokens = 4_194_304
    sequence_length = 4096
    [[ramp]]
    until_tokens = 2_870_000_000_000
    batch_tokens = 8_388_608
    [[ramp]]                      # to the end
    batch_tokens = 16_777_216

Small batches early are steady, large ones late are efficient. A batch is given in tokens and cut into micro-batches of
`data.rows` rows, so it means the same on any number of processes, and a run may go on with other rows. What a step is
depends on the tokens seen alone, so nothing has to be saved. Shorter sequences are cut out of the loader's rows: the
order of the data is that of the whole run.

Source: The Llama 3 Herd of Models (2407.21783), section 3.4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import ConfigError


class BatchPhase(Config):
    """A part of the run with one size of batch."""

    batch_tokens: int = Field(ge=1)
    """Tokens of a step, a multiple of data.rows x data.sequence_length."""
    until_tokens: int = Field(default=0, ge=0)
    """The phase ends with the step that reaches so many tokens of the whole run; 0: with the run (the last phase)."""
    sequence_length: int = Field(default=0, ge=0)
    """Longest piece of a document in this phase, a divisor of data.sequence_length; 0: data.sequence_length."""


@dataclass(frozen=True)
class Ramp:
    """The phases in micro-batches.

    Attributes:
        starts: Tokens seen when each phase begins; the first is 0.
        batches: Micro-batches of a step in each.
        lengths: Longest piece of a document in each, tokens.
        tokens: Of one micro-batch over all processes.
    """

    starts: tuple[int, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: int

    def at(self, tokens: int) -> int:
        """Micro-batches of the step that begins after so many tokens."""
        return next(n for start, n in zip(self.starts[::-1], self.batches[::-1], strict=True) if tokens >= start)

    def tokens_at(self, step: int) -> int:
        """Tokens that the first so many steps see."""
        seen = 0
        ends: Sequence[int | None] = [*self.starts[1:], None]
        for end, n in zip(ends, self.batches, strict=True):
            batch = n * self.tokens
            steps = step if end is None else min(step, (end - seen) // batch)
            seen, step = seen + steps * batch, step - steps
        return seen

    def steps_until(self, tokens: int) -> int:
        """The first step count that sees so many tokens."""
        steps = seen = 0
        ends: Sequence[int | None] = [*self.starts[1:], None]
        for end, n in zip(ends, self.batches, strict=True):
            target = tokens if end is None else min(tokens, end)
            more = -(-max(0, target - seen) // (n * self.tokens))
            steps, seen = steps + more, seen + more * n * self.tokens
        return steps

    def cuts(self, row_tokens: int) -> tuple[tuple[int, int], ...]:
        """Longest pieces as the loader takes them: from which row on, how many tokens; none where rows stay whole."""
        found = tuple((start // row_tokens, n) for start, n in zip(self.starts, self.lengths, strict=True))
        return found if any(n != row_tokens for _, n in found) else ()


def resolve_ramp(phases: Sequence[BatchPhase], *, rows: int, sequence_length: int, accumulation: int) -> Ramp:
    """The ramp of a recipe; without phases, one batch for the whole run.

    Args:
        phases: As the recipe has them.
        rows: Rows of a micro-batch over all processes.
        sequence_length: Tokens of a row.
        accumulation: Micro-batches of a step after the last phase, and without phases.

    Raises:
        ConfigError: Every phase that cannot be, with the reason.
    """
    tokens, problems = rows * sequence_length, []
    starts, batches, lengths = [0], list[int](), list[int]()
    for number, phase in enumerate(phases):
        where, length = f"ramp[{number}]", phase.sequence_length or sequence_length
        if phase.batch_tokens % tokens:
            problems.append(
                f"{where}.batch_tokens={phase.batch_tokens} is no multiple of data.rows x data.sequence_length = "
                f"{rows} x {sequence_length} = {tokens}. Lower data.rows, or begin on fewer processes"
            )
        if sequence_length % length:
            problems.append(f"{where}.sequence_length={length} does not divide data.sequence_length={sequence_length}")
        if not phase.until_tokens and number < len(phases) - 1:
            problems.append(f"{where} has no until_tokens; only the last phase lasts to the end")
        if phase.until_tokens and phase.until_tokens <= starts[-1]:
            problems.append(f"{where}.until_tokens={phase.until_tokens} is no later than the end of the phase before")
        if problems:
            continue
        batches.append(phase.batch_tokens // tokens)
        lengths.append(length)
        if phase.until_tokens:  # the step that reaches it is still of this phase
            steps = -(-(phase.until_tokens - starts[-1]) // phase.batch_tokens)
            starts.append(starts[-1] + steps * phase.batch_tokens)
    if problems:
        raise ConfigError(problems, title="the batches cannot grow so")
    if len(batches) < len(starts):
        batches.append(accumulation)
        lengths.append(sequence_length)
    return Ramp(tuple(starts), tuple(batches), tuple(lengths), tokens)
