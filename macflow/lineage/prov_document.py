"""A lineage as a W3C PROV document: entities are contents by their hash, activities the runs of stages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from prov.model import PROV_TYPE, ProvActivity, ProvDocument, ProvEntity

from macflow.lineage.tree import Made, Node, Tree

# Names that resolve to nothing: a hash is its own address.
NAMESPACES = {
    "artifact": "urn:macflow:artifact:",
    "code": "urn:macflow:code:",
    "run": "urn:macflow:run:",
    "commit": "urn:git:commit:",
    "agent": "urn:macflow:agent:",
    "macflow": "urn:macflow:term:",
}


def as_prov(tree: Tree) -> dict[str, Any]:
    """Return the lineage as PROV-JSON."""
    document = ProvDocument()
    for prefix, uri in NAMESPACES.items():
        document.add_namespace(prefix, uri)
    macflow = document.agent("agent:macflow", {PROV_TYPE: "prov:SoftwareAgent"})
    entities = {node.path: _entity(document, node) for node in tree.nodes}
    activities: dict[str, ProvActivity] = {}
    for node in tree.nodes:
        if node.made is None:
            continue
        stage = node.made.stage
        if stage not in activities:
            activities[stage] = _activity(document, tree, node.made)
            plan = _plan(document, node.made)
            document.association(activities[stage], macflow, plan)
            for path in node.inputs:
                document.usage(activities[stage], entities[path])
            for code in _code(document, node.made):
                document.usage(activities[stage], code)
        document.generation(entities[node.path], activities[stage])
        for path in node.inputs:
            document.derivation(entities[node.path], entities[path], activities[stage])
    content: dict[str, Any] = json.loads(document.serialize(format="json") or "{}")
    return content


def _entity(document: ProvDocument, node: Node) -> ProvEntity:
    told = {
        "macflow:path": node.path,
        "macflow:kind": node.kind,
        "macflow:md5": node.md5,
        "macflow:sha256": node.sha256,
        "macflow:bytes": node.size,
        "macflow:source": json.dumps(dict(node.source), sort_keys=True) if node.source else None,
    }
    return document.entity(f"artifact:{_name(node)}", _known(told))


def _activity(document: ProvDocument, tree: Tree, made: Made) -> ProvActivity:
    card = made.card or {}
    start, end = _times(card)
    told = {
        "macflow:stage": made.stage,
        "macflow:params": json.dumps(dict(made.params), sort_keys=True),
        "macflow:commit": made.commit.commit if made.commit else None,
        "macflow:python": card.get("python"),
        "macflow:platform": card.get("platform"),
        "macflow:packages": json.dumps(card["packages"], sort_keys=True) if card.get("packages") else None,
    }
    outputs = [
        node.md5 or "" for node in tree.nodes if node.made is not None and node.made.stage == made.stage
    ]
    return document.activity(f"run:{made.stage}/{min(outputs)}", start, end, _known(told))


def _plan(document: ProvDocument, made: Made) -> ProvEntity:
    commit = made.commit.commit if made.commit else "uncommitted"
    return document.entity(
        f"commit:{commit}/{made.stage}", {PROV_TYPE: "prov:Plan", "macflow:command": made.cmd}
    )


def _code(document: ProvDocument, made: Made) -> list[ProvEntity]:
    entities: list[ProvEntity] = []
    for path, md5 in made.code.items():
        name = f"code:{path}/{md5}"
        known = [record for record in document.get_record(name) if isinstance(record, ProvEntity)]
        told = {"macflow:path": path, "macflow:md5": md5}
        entities.append(known[0] if known else document.entity(name, told))
    return entities


def _name(node: Node) -> str:
    # A name holds no blank.
    return f"{node.path.replace(' ', '')}/{node.md5 or 'outside'}"


def _times(card: Any) -> tuple[datetime | None, datetime | None]:
    try:
        start = datetime.strptime(card["started_utc"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return start, start + timedelta(seconds=float(card["wall_seconds"]))
    except (KeyError, TypeError, ValueError):
        return None, None


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
