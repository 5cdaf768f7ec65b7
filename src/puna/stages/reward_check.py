"""`puna rm check`: a reward model and preferences in; figures, a page, and a verdict out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from puna.core import console
from puna.core.errors import GateError, UsageError
from puna.core.files import atomic_open, fingerprint, write_json
from puna.core.run_folder import RunFolder
from puna.lineage.artifact import read_record, run_folder_of
from puna.post.reward_check import CheckConfig
from puna.stages.page import reward_page
from puna.stages.reward import FIGURES
from puna.stages.stage import PlanRow, Stage, StageRecipe

PAIRS = "pairs.jsonl"
"""Both scores of every pair, in order: two models judged by the same pairs can be compared pair by pair."""


class RewardCheckRecipe(StageRecipe):
    """A reward model, preferences that it did not learn from, and what is asked of it."""

    model: Path
    """The reward model."""
    preferences: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of preferences or rankings."""
    without: tuple[Path, ...] = ()
    """JSONL files whose prompts are left out: what the model learned from says little."""
    check: CheckConfig = CheckConfig()
    """What is asked."""
    fail: bool = True
    """End with exit code 4 when a check is not passed; otherwise only tell."""


def inputs(recipe: RewardCheckRecipe) -> Mapping[str, Path]:
    """The model and the files."""
    named = {"model": recipe.model, **{f"preferences.{i}": path for i, path in enumerate(recipe.preferences)}}
    return named | {f"without.{i}": path for i, path in enumerate(recipe.without)}


def plan(recipe: RewardCheckRecipe) -> Sequence[PlanRow]:
    """What it is judged by."""
    from puna.post.rankings import read_rankings

    if not all(path.exists() for path in recipe.preferences):
        return ()
    _refuse_learned(recipe)
    return [("prompts to judge by", f"{len(read_rankings(recipe.preferences)):,}")]


def _refuse_learned(recipe: RewardCheckRecipe) -> None:
    """Refuse files that the model, or a reward model that it began with, learned from, as their lineage says.

    Raises:
        UsageError: There is such a file.
    """
    folder, learned = run_folder_of(recipe.model), set[str]()
    while (record := read_record(folder)) is not None and record.stage == "rm":
        learned |= {entry.fingerprint for name, entry in record.inputs.items() if name.startswith("preferences.")}
        folder = run_folder_of(folder / record.inputs["start_from"].path)
    known = [str(path) for path in recipe.preferences if learned and fingerprint(path) in learned]
    if known:
        raise UsageError(
            f"{recipe.model} learned from {', '.join(known)}: how it judges those pairs says little. Give pairs that "
            "it did not learn from; what it held out of them is judged in the check.html of its own folder."
        )


def run(recipe: RewardCheckRecipe, folder: RunFolder) -> None:
    """Score, count, and say yes or no.

    Raises:
        GateError: A check is not passed.
        UsageError: The model is no reward model, or learned from these preferences.
    """
    import torch

    from puna.checkpoint.format import load_model, load_tokenizer
    from puna.post.rankings import encode_rankings, read_rankings
    from puna.post.reward import Scorer
    from puna.post.reward_check import examine, score_pairs

    _refuse_learned(recipe)
    rankings = read_rankings(recipe.preferences)
    if recipe.without:
        known = {ranking.prompt for ranking in read_rankings(recipe.without)}
        n_all, rankings = len(rankings), [ranking for ranking in rankings if ranking.prompt not in known]
        console.say(f"{len(rankings)} of {n_all} rows have a prompt that the model did not learn from")
        if not rankings:
            raise UsageError("no row is left to judge by: every prompt is in one of `without`")
    model, shape = load_model(recipe.model, dtype=torch.float32)
    if shape.head != "score":
        raise UsageError(f"{recipe.model} is a language model; a reward model is made by `puna rm RECIPE`.")
    tokenizer = load_tokenizer(recipe.model)
    encoded = encode_rankings(rankings, tokenizer, sequence_length=shape.max_seq_len)
    if encoded.dropped:
        console.warn(f"left out: {console.counts(encoded.dropped)}")
    pairs = score_pairs(Scorer(model, tokenizer), encoded)
    report = examine(pairs, recipe.check)
    with atomic_open(folder.path / PAIRS) as file:
        scored = zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True)
        file.writelines(json.dumps({"better": better, "worse": worse}) + "\n" for better, worse in scored)
    write_json(folder.path / FIGURES, report.to_json())
    reward_page.write(folder.path / reward_page.PAGE, report, title=f"Is {recipe.model} good enough?")
    reward_page.tell(report)
    failed = [f"{check.name}: {check.reason}" for check in report.checks if not check.passed]
    if failed and recipe.fail:
        raise GateError(
            f"{recipe.model} should not be used: {'; '.join(failed)}. More, clearer or more varied preferences help; "
            "fail=false only tells."
        )


STAGE = Stage(verb="rm check", recipe=RewardCheckRecipe, inputs=inputs, plan=plan, run=run)
