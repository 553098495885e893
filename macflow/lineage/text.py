"""A lineage as text: a tree for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from macflow.lineage.findings import Findings
from macflow.lineage.lock import PARAMS_FILE, PIPELINE_FILE, flatten
from macflow.lineage.tree import Made, Node, Tree

# Of a card's packages, those that decide about numbers.
TOLD_PACKAGES = ("torch", "numpy", "minari", "mpe2")
# Headline figures, by the end of their dotted name.
TOLD_RESULTS = ("policy.return_mean", "policy.normalized_return", "kept.return_mean")


def as_text(tree: Tree) -> str:
    """Draw the tree, the subject first; an artifact that was drawn already is only named again."""
    lines = [*_subject(tree), ""]
    drawn: set[str] = set()

    def draw(path: str, prefix: str, branch: str, below: str) -> None:
        node = tree.node(path)
        lines.append(f"{prefix}{branch}{_title(node)}{' (above)' if path in drawn else ''}")
        if path in drawn:
            return
        drawn.add(path)
        inner = prefix + below
        children = list(reversed(node.inputs))
        bar = "│ " if children else "  "
        lines.extend(f"{inner}{bar}  {text}" for text in _facts(node))
        for beside in _besides(tree, node):
            if beside.path not in drawn:
                drawn.add(beside.path)
                lines.append(f"{inner}{bar}  beside it: {_title(beside)}")
        for index, child in enumerate(children):
            last = index == len(children) - 1
            draw(child, inner, "└─ " if last else "├─ ", "   " if last else "│  ")

    draw(tree.subject.path, "", "", "")
    lines.extend(["", *(f"warning: {text}" for text in tree.warnings)] if tree.warnings else [])
    return "\n".join(lines)


def as_json(tree: Tree) -> dict[str, Any]:
    """Return everything that the tree holds as plain JSON."""
    version = tree.subject.version
    return {
        "subject": {
            "path": tree.subject.path,
            "md5": tree.subject.md5,
            "sha256": tree.root.sha256 or (tree.subject.hashed.sha256 if tree.subject.hashed else None),
            "found_in": "working tree" if version is None else _commit(version),
        },
        "nodes": [_node(node) for node in tree.nodes],
        "results": dict(tree.results),
        "warnings": list(tree.warnings),
    }


def findings_text(findings: Findings) -> str:
    """Say what differs, what could not be checked, and what was looked at."""
    lines = [str(one) for one in findings.differences]
    lines += [f"not here, so not checked: {text}" for text in findings.unchecked]
    lines += [f"note: {text}" for text in findings.notes]
    looked = f"{findings.files} files, {findings.size / 1e6:.1f} MB, hashed"
    count = len(findings.differences)
    said = f"{count} difference{'' if count == 1 else 's'}" if count else "nothing differs"
    return "\n".join([*lines, f"{said} ({looked})"])


def findings_json(findings: Findings) -> dict[str, Any]:
    """Return the findings as plain JSON."""
    return asdict(findings)


def short(value: Any) -> str:
    """Return a digest by its first 12 digits, None as a dash."""
    return "-" if value is None else str(value)[:12]


def settings_text(params: Mapping[str, Any]) -> str:
    """Return parameters in one line."""
    return ", ".join(f"{name}={_plain(value)}" for name, value in params.items())


def environment_text(card: Mapping[str, Any]) -> str:
    """Return in one line what versions and machine a card names."""
    packages = card.get("packages") or {}
    named = [f"{name} {packages[name]}" for name in TOLD_PACKAGES if packages.get(name)]
    return ", ".join([f"Python {card.get('python')}", *named, str(card.get("platform"))])


def changed_sources(made: Made) -> list[str]:
    """Return what the run read that was not as its commit has it, as its card says."""
    sources = {PARAMS_FILE, PIPELINE_FILE, *made.code}
    return sorted(sources & set((made.card or {}).get("git_changed") or []))


def headline(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the results to name first, as (dotted name, value)."""
    return [
        (f"{file.rpartition('/')[2].removesuffix('.json')}.{name}", value)
        for file, content in results.items()
        for name, value in flatten(content)
        if name.endswith(TOLD_RESULTS)
    ]


def _subject(tree: Tree) -> Iterator[str]:
    version = tree.subject.version
    where = (
        "the working tree's dvc.lock"
        if version is None
        else f"commit {version.commit[:12]} ({version.time}, {version.subject})"
    )
    yield f"{tree.subject.path} is recorded in {where}"
    if found := headline(tree.results):
        yield "  " + ", ".join(
            f"{name} {value:.4g}" for name, value in found if isinstance(value, int | float)
        )


def _title(node: Node) -> str:
    if node.kind == "source":
        return node.path
    return f"{node.path}  md5 {short(node.md5)}" + (f"  sha256 {short(node.sha256)}" if node.sha256 else "")


def _besides(tree: Tree, node: Node) -> Sequence[Node]:
    """Return what the same stage wrote besides, and nothing in the tree was made from."""
    if node.made is None:
        return ()
    read = {path for other in tree.nodes for path in other.inputs}
    return [
        other
        for other in tree.nodes
        if other.made is not None
        and other.made.stage == node.made.stage
        and other.path not in read
        and other.path not in (node.path, tree.subject.path)
    ]


def _facts(node: Node) -> Iterator[str]:
    for name, value in node.source.items():
        if name not in ("name", "behaviour_weights"):
            yield f"{name.replace('_', ' ')}: {_plain(value)}"
        elif name == "behaviour_weights":
            yield f"behaviour weights: {', '.join(f'{path} md5 {short(md5)}' for path, md5 in value.items())}"
    if node.made is not None:
        yield from _making(node.made)


def _making(made: Made) -> Iterator[str]:
    yield f"stage {made.stage}: {made.cmd}"
    yield f"params: {settings_text(made.params)}"
    if made.commit is not None:
        yield f"commit {made.commit.commit[:12]} ({made.commit.time}), {len(made.code)} code files"
    else:
        yield f"commit: none yet, {len(made.code)} code files"
    if made.card is None:
        yield "run card: none kept"
        return
    changed = changed_sources(made)
    yield (
        f"run: {made.card.get('started_utc')}, {made.card.get('wall_seconds')} s, "
        f"from commit {short(made.card.get('git_commit'))}"
        + (f" with local changes to {', '.join(changed)}" if changed else "")
    )
    yield f"with: {environment_text(made.card)}"


def _node(node: Node) -> dict[str, Any]:
    made = node.made
    return {
        "path": node.path,
        "kind": node.kind,
        "md5": node.md5,
        "sha256": node.sha256,
        "size": node.size,
        "nfiles": node.nfiles,
        "made_from": list(node.inputs),
        "source": dict(node.source) or None,
        "made_by": None
        if made is None
        else {
            "stage": made.stage,
            "cmd": made.cmd,
            "params": dict(made.params),
            "code": dict(made.code),
            "commit": None if made.commit is None else _commit(made.commit),
            "run_card": None if made.card is None else dict(made.card),
        },
    }


def _commit(version: Any) -> dict[str, str]:
    return {"commit": version.commit, "time": version.time, "subject": version.subject}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value)
