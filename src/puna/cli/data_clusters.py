"""`puna data clusters`: what a deduplication put together."""

import click

from puna.cli.stage_verb import HELP, examples


@click.command(
    "clusters",
    context_settings=HELP,
    epilog=examples(
        "puna data clusters runs/mine/corpus",
        "puna data clusters runs/mine/corpus minhash --weakest --count 20",
    ),
)
@click.argument("corpus", type=click.Path())
@click.argument("step", required=False)
@click.option("--weakest", is_flag=True, help="Begin with the pairs that only just count as copies.")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="Clusters of each step.")
@click.option("--members", type=click.IntRange(1), default=4, show_default=True, help="Copies shown of each cluster.")
@click.option("--characters", type=click.IntRange(20), default=160, show_default=True, help="Of each text.")
def command(corpus: str, step: str | None, weakest: bool, count: int, members: int, characters: int) -> None:
    """Show which documents went as copies of which.

    Largest clusters come first. Under each document that stays are those that went because of it, the least
    similar first. STEP is a step's name or kind (minhash, 03-semantic); without it all are shown.
    """
    from puna.core import console
    from puna.data.clusters import Member, clusters
    from puna.data.corpus import Corpus

    def say(label: str, member: Member) -> None:
        text = " ".join(member.text.split())
        text = text or "(its text is not in the corpus; curate with keep=all to have it)"
        shown = text if len(text) <= characters else text[:characters] + "..."
        console.say(f"  {label}  {member.id}  {member.url}  {member.place}\n          {shown}")

    found = clusters(Corpus.open(corpus), step, order="weakest" if weakest else "largest", count=count, members=members)
    if not found:
        console.say("nothing went as a copy of something else")
    for cluster in found:
        console.say(f"{cluster.step}: {cluster.size} documents")
        say("stays ", cluster.kept)
        for member in cluster.gone:
            say(f"{member.similarity:.4f}", member)
        if cluster.size - 1 > len(cluster.gone):
            console.say(f"  and {cluster.size - 1 - len(cluster.gone)} more")
