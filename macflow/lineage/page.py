"""A lineage as one HTML page that asks nothing of any network: a graph whose boxes open their details."""

from __future__ import annotations

from pathlib import Path

from macflow.lineage.text import changed_sources, headline
from macflow.lineage.tree import Node, Tree
from macflow.report.graph import lay_out
from macflow.report.lineage import Artifact, Input, Lineage
from macflow.report.render import page_templates

TEMPLATES = Path(__file__).parent
HASH_DIGITS = 10


def as_page(tree: Tree) -> str:
    """Return the page."""
    # What was measured hangs on no arrow: it is told at the top.
    nodes = [node for node in tree.nodes if node.kind != "metrics" or node.path == tree.subject.path]
    digests = {node.path: node.md5 or node.path for node in nodes}
    lineage = Lineage(tuple(_artifact(node, digests) for node in nodes))
    version = tree.subject.version
    return (
        page_templates(TEMPLATES)
        .get_template("page.html.j2")
        .render(
            subject=tree.subject,
            root=tree.root,
            nodes=nodes,
            recorded="the working tree's dvc.lock"
            if version is None
            else f"commit {version.commit[:12]}, {version.time}, {version.subject}",
            changed_sources=changed_sources,
            results=headline(tree.results),
            warnings=tree.warnings,
            hashes={node.path: (node.sha256 or node.md5 or "source")[:HASH_DIGITS] for node in nodes},
            wide_graph=lay_out(lineage, vertical=False),
            tall_graph=lay_out(lineage, vertical=True),
        )
    )


def _artifact(node: Node, digests: dict[str, str]) -> Artifact:
    inputs = tuple(Input(path, digests[path], digests[path]) for path in node.inputs if path in digests)
    return Artifact(node.path, node.sha256, node.md5, inputs, ())
