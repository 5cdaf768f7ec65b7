"""What the deduplications of a corpus put together, on its page: the largest groups and the weakest pairs, to read."""

from puna.data.clusters import Cluster, Member, Order, clusters, steps_with_clusters
from puna.data.corpus import Corpus
from puna.stages.page import html
from puna.stages.page.html import Section

_SHOWN, _MEMBERS, _CHARACTERS = 3, 2, 400
_TITLES: dict[Order, str] = {"largest": "Largest", "weakest": "Weakest"}


def sections(corpus: Corpus) -> list[Section]:
    """One section for each step that found copies; none where there are none."""
    found = []
    for step in steps_with_clusters(corpus):
        body = "".join(
            _cluster(title, cluster)
            for order, title in _TITLES.items()
            for cluster in clusters(corpus, step, order=order, count=_SHOWN, members=_MEMBERS)
        )
        if body:
            found.append(Section(f"clusters-{step}", f"Copies that {step} put together", body))
    return found


def _cluster(title: str, cluster: Cluster) -> str:
    weakest = cluster.gone[0].similarity
    summary = f"{title}: {cluster.size:,} documents, similarity from {weakest:.4f} on"
    parts = [_member("stays", cluster.kept), *(_member(f"{m.similarity:.4f}", m) for m in cluster.gone)]
    left = cluster.size - 1 - len(cluster.gone)
    return html.details(summary, "".join(parts) + (html.paragraph(f"and {left:,} more") if left else ""))


def _member(label: str, member: Member) -> str:
    text = member.text if len(member.text) <= _CHARACTERS else member.text[:_CHARACTERS] + " …"
    shown = html.preformatted(text) if text else html.paragraph("Its text is not in the corpus.")
    return html.paragraph(f"{label} · {member.id} · {member.url}") + shown
