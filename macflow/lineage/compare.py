"""What two artifacts of a pipeline differ in: data, code, parameters, versions, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from macflow.lineage.lock import flatten
from macflow.lineage.tree import Made, Node, Tree


@dataclass(frozen=True)
class Change:
    """A value that is another one in the second lineage; None where one of them has none."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """All differences between two lineages, by kind."""

    # Artifacts, by path.
    data: tuple[Change, ...]
    # Of the source: address, behaviour, environment.
    source: tuple[Change, ...]
    parameters: tuple[Change, ...]
    # Code files, by stage.
    code: tuple[Change, ...]
    commands: tuple[Change, ...]
    # Packages, Python, machine, by stage.
    versions: tuple[Change, ...]
    # What was measured.
    metrics: tuple[Change, ...]


def compare(first: Tree, second: Tree) -> Comparison:
    """Compare two lineages; stages are matched by name, artifacts by path."""
    return Comparison(
        data=_changes(*(_by_path(tree) for tree in (first, second))),
        source=_changes(*(_of_nodes(tree, lambda n: dict(flatten(n.source))) for tree in (first, second))),
        parameters=_changes(
            *(_of_stages(tree, lambda made: made.params, named=False) for tree in (first, second))
        ),
        code=_changes(*(_of_stages(tree, lambda made: made.code) for tree in (first, second))),
        commands=_changes(*(_of_stages(tree, lambda made: {"cmd": made.cmd}) for tree in (first, second))),
        versions=_changes(*(_of_stages(tree, _versions) for tree in (first, second))),
        metrics=_changes(*(_measured(tree) for tree in (first, second))),
    )


def as_text(comparison: Comparison) -> str:
    """List the differences; metrics with how much they moved."""
    lines: list[str] = []
    for title, changes in vars(comparison).items():
        if changes:
            lines += [f"{title}:", *(f"  {_line(change)}" for change in changes)]
    return "\n".join(lines) or "no difference"


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(
        Change(name, first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    )


def _by_path(tree: Tree) -> dict[str, Any]:
    return {node.path: node.md5 for node in tree.nodes if node.kind not in ("source", "metrics")}


def _of_nodes(tree: Tree, values: Callable[[Node], Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for node in tree.nodes for name, value in values(node).items()}


def _of_stages(tree: Tree, values: Callable[[Made], Mapping[str, Any]], named: bool = True) -> dict[str, Any]:
    made = {node.made.stage: node.made for node in tree.nodes if node.made is not None}
    return {
        f"{stage}: {name}" if named else name: value
        for stage, one in made.items()
        for name, value in values(one).items()
    }


def _versions(made: Made) -> dict[str, Any]:
    if made.card is None:
        return {}
    told = {name: made.card.get(name) for name in ("python", "platform", "cpu_count")}
    return told | dict(made.card.get("packages") or {})


def _measured(tree: Tree) -> dict[str, Any]:
    return {
        f"{file}: {name}": value for file, content in tree.results.items() for name, value in flatten(content)
    }


def _line(change: Change) -> str:
    first, second = change.first, change.second
    if _is_number(first) and _is_number(second):
        return f"{change.name}: {first:.6g} -> {second:.6g} ({second - first:+.4g})"
    told = ["none" if value is None else value for value in (first, second)]
    return f"{change.name}: {told[0]} -> {told[1]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
