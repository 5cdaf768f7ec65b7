"""What the deduplications of a corpus put together, on its page: the largest groups and the weakest pairs, to read."""

from puna.data.clusters import Cluster, Member, Order, steps_with_clusters, with_texts, without_texts
from puna.data.corpus import Corpus
from puna.stages.page import html
from puna.stages.page.html import Section

_SHOWN, _MEMBERS, _CHARACTERS = 3, 2, 400
_TITLES: dict[Order, str] = {"largest": "Largest", "weakest": "Weakest"}


def sections(corpus: Corpus) -> list[Section]:
    """One section for each step that found copies; none where there are none."""
    bare: list[tuple[Order, Cluster]] = [
        (order, cluster)
        for step in steps_with_clusters(corpus)
        for order in _TITLES
        for cluster in without_texts(corpus, step, order, _SHOWN, _MEMBERS)
    ]
    bodies: dict[str, str] = {}
    shown: set[tuple[str, str]] = set()
    for (order, _), cluster in zip(bare, with_texts(corpus, [cluster for _, cluster in bare]), strict=True):
        if (cluster.step, cluster.kept.id) in shown:
            continue  # few clusters: the weakest are among the largest
        shown.add((cluster.step, cluster.kept.id))
        bodies[cluster.step] = bodies.get(cluster.step, "") + _cluster(_TITLES[order], cluster)
    return [Section(f"clusters-{step}", f"Copies that {step} put together", body) for step, body in bodies.items()]


def _cluster(title: str, cluster: Cluster) -> str:
    weakest = cluster.gone[0].similarity
    summary = f"{title}: {cluster.size:,} documents, similarity from {weakest:.4f} on"
    parts = [_member("stays", cluster.kept), *(_member(f"{m.similarity:.4f}", m) for m in cluster.gone)]
    left = cluster.size - 1 - len(cluster.gone)
    return html.details(summary, "".join(parts) + (html.paragraph(f"and {left:,} more") if left else ""))


def _member(label: str, member: Member) -> str:
    text = member.text if len(member.text) <= _CHARACTERS else member.text[:_CHARACTERS] + " …"
    shown = (
        html.excerpt(text) if text else html.paragraph('Its text is not in the corpus; keep = "all" keeps every text.')
    )
    return html.paragraph(f"{label} · {member.id} · {member.url} · {member.place}") + shown
