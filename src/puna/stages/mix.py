"""The table of a mix: what a run reads of each source, and what that costs."""

from puna.core import console
from puna.data.mix import MixConfig, resolve_mix
from puna.data.shards import ShardSet
from puna.stages.pretrain import PretrainRecipe, mix_of, ramp_of


def show(recipe: PretrainRecipe) -> None:
    """Print the table.

    Raises:
        MissingError: The shards are not there.
        ConfigError: The mix does not fit them.
    """
    data, ramp = recipe.data, ramp_of(recipe)
    sets = [ShardSet.open(path, verify="sizes") for path in data.shards]
    mixed = mix_of(recipe, sets)
    rows = ramp.tokens_at(recipe.train.steps) // data.sequence_length
    if mixed is None:
        sizes = {name: source.n_tokens for shards in sets for name, source in shards.sources("train").items()}
        total = sum(data.weights.values())
        plain = MixConfig(shares={k: v / total for k, v in data.weights.items()}, max_epochs=1e12)
        mixed = resolve_mix(plain, sizes, rows=rows, row_tokens=data.sequence_length)
    n_phases = 1 + len(mixed.later)
    columns = ["source", "tokens", *(f"share {i + 1}" if n_phases > 1 else "share" for i in range(n_phases))]
    table = []
    for row in sorted(mixed.rows, key=lambda row: -row.read):
        note = "held by max_epochs" if row.source in mixed.capped else ""
        shares = [f"{share:.2%}" for share in row.shares]
        cells = [row.source, console.short_number(row.n_tokens), *shares, console.short_number(row.read)]
        table.append([*cells, f"{row.epochs:.2f}", note])
    tokens = rows * data.sequence_length
    console.table(f"mix of {console.short_number(tokens)} tokens", [*columns, "read", "epochs", ""], table)
    for number, (row, _) in enumerate(mixed.later, start=2):
        step = ramp.steps_until(row * data.sequence_length)
        console.say(f"phase {number} begins at step {step} of {recipe.train.steps}")
    again = sum(max(0.0, row.read - row.n_tokens) for row in mixed.rows)
    unread = sum(max(0.0, row.n_tokens - row.read) for row in mixed.rows)
    console.say(
        f"{console.short_number(again)} tokens ({again / tokens:.0%}) are read again; "
        f"{console.short_number(unread)} tokens of the shards stay unread"
    )
