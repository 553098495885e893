"""Do artifacts themselves agree with the record: what manifests and run cards say they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from macflow.lineage.findings import Findings
from macflow.lineage.lock import LOCK_FILE, PARAMS_FILE, PIPELINE_FILE, LockedStage, flatten
from macflow.lineage.project import MANIFESTS, json_object
from macflow.lineage.run_cards import RunCards

# Path of an artifact and DVC's hash -> its SHA-256, None where its bytes lie nowhere here.
Sha256Of = Callable[[str, str], str | None]


def is_manifest(name: str) -> bool:
    """Whether a file of an artifact tells what it was made from."""
    return PurePosixPath(name).name in MANIFESTS


def check_manifest(
    stage: LockedStage, node: str, name: str, content: bytes, sha256_of: Sha256Of, findings: Findings
) -> None:
    """Hold one manifest against the digests of the inputs and against the lock's parameters."""
    manifest = json_object(content)
    entries = {dep.path: dep for dep in stage.inputs}
    claimed: dict[str, Any] = dict(_mapping(manifest.get("made_from")))
    if not claimed:
        findings.differ(
            node, "forged", f"{name}: made_from", "digests of its inputs", "none", "every manifest has them"
        )
    for path, digest in claimed.items():
        if path not in entries:
            findings.differ(
                node,
                "forged",
                f"{name}: made_from.{path}",
                "no such input",
                digest,
                f"{LOCK_FILE}: {stage.name}",
            )
            continue
        actual = sha256_of(path, entries[path].md5)
        if actual is not None and actual != digest:
            findings.differ(
                node, "forged", f"{name}: made_from.{path}", f"sha256 {actual}", f"sha256 {digest}",
                f"the bytes of {path} that {LOCK_FILE} records",
            )  # fmt: skip
    source = _mapping(manifest.get("source"))
    path = str(source.get("path", ""))
    if path in entries and source.get("sha256") is not None:
        actual = sha256_of(path, entries[path].md5)
        if actual is not None and actual != source["sha256"]:
            findings.differ(
                node, "forged", f"{name}: source.sha256", f"sha256 {actual}", f"sha256 {source['sha256']}",
                f"the bytes of {path} that {LOCK_FILE} records",
            )  # fmt: skip
    settings = stage.settings
    for key, value in flatten(_mapping(manifest.get("params"))):
        if key in settings and settings[key] != value:
            findings.differ(
                node, "forged", f"{name}: params.{key}", settings[key], value, f"{LOCK_FILE}: {stage.name}"
            )


def check_cards(
    stages: Sequence[LockedStage], cards: RunCards, sha256_of: Sha256Of, findings: Findings
) -> None:
    """Hold the bytes against the SHA-256 that the run cards noted when they were made."""
    for stage in stages:
        card = cards.of(stage)
        if card is None:
            findings.note([f"{stage.name}: no run card is kept of the run that made its output"])
            continue
        output = card["output"]
        actual = sha256_of(str(output["path"]), str(output["md5"]))
        if actual is not None and actual != output.get("sha256"):
            findings.differ(
                str(output["path"]), "forged", "", f"sha256 {output.get('sha256')}", f"sha256 {actual}",
                f"run card of {stage.name}, {card.get('started_utc')}",
            )  # fmt: skip
        sources = {PARAMS_FILE, PIPELINE_FILE, *(dep.path for dep in stage.code)}
        if changed := sorted(sources & set(card.get("git_changed") or [])):
            findings.note(
                [
                    f"{stage.name} ran with local changes to {', '.join(changed)} "
                    f"on commit {str(card.get('git_commit'))[:12]}"
                ]
            )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
