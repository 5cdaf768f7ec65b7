"""The mix: how much of each source a model reads, how often it reads it again, and how that changes over the run.

    temperature     sources weigh by tokens ** (1 / temperature): 1 is by size, more gives small sources more
    shares          a group's part of all tokens; what has no share divides the rest
    floors          a group's least part: English text must not drown thirty languages or code
    max_epochs      no source is read more often; what it loses goes to the others, in proportion
    phases          from a part of the run on, other shares: annealing on the best sources at the end

Groups are names with glob patterns of sources; a pattern behind `!` takes away. Of a source that is packed by language
(`groups.py`) every language is a source, `crawl/de`, and the source's name stands for all of them. The order is that
of the list: temperature, shares, floors, caps. A loader reads whole rows, so a cap counts whole rows and holds exactly.

Source: The Llama 3 Herd of Models (2407.21783), sections 3.1.2 and 3.1.3; four epochs: Muennighoff et al. (2305.16264);
temperature: Conneau et al., XLM-R (1911.02116), section 3.1.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import ConfigError


class MixPhase(Config):
    """Another mix from a point of the run on."""

    start: float = Field(gt=0, lt=1)
    """Part of the run after which it holds, 0 to 1."""
    shares: dict[str, float]
    """Shares of groups or sources in this phase; the others divide the rest."""


class MixConfig(Config):
    """How sources are mixed."""

    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Named groups: glob patterns of source names, `code = ["github*", "stdlib"]`; what begins with `!` is taken away,
    from everything where nothing else is named: `other = ["crawl/*", "!*/en"]`, `rest = ["!*/en"]`."""
    temperature: float = Field(default=1.0, ge=1)
    """1 weighs sources by size; higher gives small ones more."""
    shares: dict[str, float] = Field(default_factory=dict)
    """Part of all tokens of a group or source, `code = 0.17`."""
    floors: dict[str, float] = Field(default_factory=dict)
    """Least part of a group or source, `non_english = 0.05`."""
    max_epochs: float = Field(default=4.0, gt=0)
    """How often a source is read at most; 0.5 would leave half of it unread."""
    phases: tuple[MixPhase, ...] = ()
    """Other shares later in the run, `[[data.mix.phases]]`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "MixConfig":
        for name, shares in (
            ("shares", self.shares),
            ("floors", self.floors),
            *(("shares", p.shares) for p in self.phases),
        ):
            if any(not 0 <= value <= 1 for value in shares.values()) or sum(shares.values()) > 1 + 1e-9:
                raise ValueError(f"{name} are {shares}; each must be from 0 to 1 and all together at most 1")
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases start at {starts}; the starts must rise")
        return self


@dataclass(frozen=True, slots=True)
class MixRow:
    """One source in a mix.

    Attributes:
        source: Its name.
        n_tokens: Its size.
        shares: Part of the tokens in each phase.
        read: Tokens read over the run.
        epochs: How often that is.
    """

    source: str
    n_tokens: int
    shares: tuple[float, ...]
    read: float
    epochs: float


@dataclass(frozen=True)
class Mixed:
    """A mix for a run.

    Attributes:
        weights: Shares by source at the beginning.
        later: `(row, shares)` of each phase, as `PackedLoader` takes them.
        rows: The table.
        capped: Sources that the cap on repetition holds down, in any phase.
    """

    weights: dict[str, float]
    later: tuple[tuple[int, dict[str, float]], ...]
    rows: tuple[MixRow, ...]
    capped: tuple[str, ...]


def resolve_mix(config: MixConfig, sizes: Mapping[str, int], *, rows: int, row_tokens: int) -> Mixed:
    """The shares of each source in each phase.

    Args:
        config: The rules.
        sizes: Tokens of each source.
        rows: Rows of the whole run.
        row_tokens: Tokens of a row.

    Raises:
        ConfigError: A name fits no source, or the caps leave too little to read.
    """
    members = _members(config, sizes)
    starts = [0, *(max(1, round(phase.start * rows)) for phase in config.phases)]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], rows], strict=True)]
    left = {name: config.max_epochs * size for name, size in sizes.items()}
    phases: list[dict[str, float]] = []
    capped: set[str] = set()
    # the last phase first: annealing on the best sources must not find them used up
    for index in reversed(range(len(starts))):
        shares = config.phases[index - 1].shares if index else config.shares
        wanted = _shares(config, shares, members, sizes)
        tokens = max(1, lengths[index] * row_tokens)
        limit = {name: int(left[name] / row_tokens + 1e-9) * row_tokens / tokens for name in sizes}
        mix, held = _capped(wanted, limit, tokens, config.max_epochs)
        capped |= held
        for name, share in mix.items():
            left[name] -= share * tokens
        phases.insert(0, mix)
    table = []
    for name in sizes:
        read = sum(mix[name] * length * row_tokens for mix, length in zip(phases, lengths, strict=True))
        table.append(MixRow(name, sizes[name], tuple(mix[name] for mix in phases), read, read / max(1, sizes[name])))
    later = tuple(zip(starts[1:], phases[1:], strict=True))
    return Mixed(phases[0], later, tuple(table), tuple(sorted(capped)))


def _members(config: MixConfig, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Sources of each name that the config uses."""
    members = {name: [name] for name in sizes}
    for name in sizes:
        source, slash, _ = name.partition("/")
        if slash:
            members.setdefault(source, []).append(name)
    problems = []
    for group, patterns in config.groups.items():
        taken = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
        left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        members[group] = [name for name in sizes if _fits(name, taken) and not _fits(name, left_out)]
        if not members[group]:
            problems.append(f"group {group!r}: no source fits {', '.join(patterns)}. There are: {', '.join(sizes)}.")
    used = {name for shares in (config.shares, config.floors, *(p.shares for p in config.phases)) for name in shares}
    for name in sorted(used - set(members)):
        near = difflib.get_close_matches(name, members, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(members)}."
        problems.append(f"there is no source or group {name!r}. {hint}")
    if problems:
        raise ConfigError(problems, title="the mix cannot be used")
    return members


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shares(
    config: MixConfig, wanted: Mapping[str, float], members: Mapping[str, list[str]], sizes: Mapping[str, int]
) -> dict[str, float]:
    base = {name: size ** (1 / config.temperature) if size else 0.0 for name, size in sizes.items()}
    total = sum(base.values())
    mix = {name: value / total for name, value in base.items()}
    mix = _set_parts(mix, wanted, members, base)
    low = {g: f for g, f in config.floors.items() if sum(mix[n] for n in members[g]) < f}
    return _set_parts(mix, low, members, base) if low else mix


def _set_parts(
    mix: dict[str, float], parts: Mapping[str, float], members: Mapping[str, list[str]], base: Mapping[str, float]
) -> dict[str, float]:
    """Give some groups their part; within a group and among the rest, proportions stay.

    Of groups that overlap the smaller one is served first: what it names is no longer the larger one's.
    """
    taken: dict[str, float] = {}
    for group, part in sorted(parts.items(), key=lambda entry: len(members[entry[0]])):
        mine = [name for name in members[group] if name not in taken]
        shape = {name: mix[name] or base[name] for name in mine}
        whole = sum(shape.values())
        taken |= {name: part * shape[name] / whole if whole else 0.0 for name in mine}
    rest = {name: share for name, share in mix.items() if name not in taken}
    room, whole = 1 - sum(taken.values()), sum(rest.values())
    if not rest or not whole:
        total = sum(taken.values())
        return {name: taken.get(name, 0.0) / total for name in mix}
    return {name: taken[name] if name in taken else room * mix[name] / whole for name in mix}


def _capped(
    mix: dict[str, float], limit: Mapping[str, float], tokens: int, max_epochs: float
) -> tuple[dict[str, float], set[str]]:
    """No source over its limit; what is over goes to the others in proportion."""
    if sum(limit.values()) < 1 - 1e-9:
        raise ConfigError(
            [
                f"{tokens:,} tokens are to be read, and at most {max_epochs:g} epochs of all sources are "
                f"{sum(limit.values()) * tokens:,.0f}. Raise data.mix.max_epochs, train less, or add data."
            ],
            title="the mix cannot be used",
        )
    held: set[str] = set()
    while True:
        free = 1 - sum(limit[name] for name in held)
        whole = sum(share for name, share in mix.items() if name not in held)
        if whole <= 0:  # the sources that were wanted are used up: the others by what is left of them
            open_room = sum(limit[name] for name in mix if name not in held)
            scaled = {n: limit[n] if n in held else free * limit[n] / open_room for n in mix}
            return scaled, held
        scaled = {n: limit[n] if n in held else free * share / whole for n, share in mix.items()}
        over = {n for n in mix if n not in held and scaled[n] > limit[n] * (1 + 1e-12)}
        if not over:
            return scaled, held
        held |= over
