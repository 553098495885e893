"""`macflow promote`: give an artifact of the project to a stage, once its metrics pass that stage's gates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from macflow.cli_common import AsJson, print_json
from macflow.types import ConfigError


def promote(
    artifact: Annotated[str, typer.Argument(help="A name under `artifacts` in dvc.yaml.")] = "policy",
    stage: Annotated[str | None, typer.Option(help="A stage that the rules name.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Such as v1.2.0, registered or new. If not given: the version with the bytes of the last "
            "commit, else the next one."
        ),
    ] = None,
    rules: Annotated[Path, typer.Option(help="What each stage asks for.")] = Path("promotion.yaml"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and tell everything; make no tag.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Only list what is registered, and where.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a version and assign a stage to it, as git tags that are not pushed.

    Only what is committed, reproduced and good enough is promoted: a gate that fails makes no tag.
    """
    from macflow.lineage.promotion import carry_out, make_plan

    root = Path(".")
    if not (root / "dvc.yaml").is_file():
        raise ConfigError("dvc.yaml: file not found; run this in the project's folder")
    if show:
        _list(root, as_json)
        return
    if stage is None:
        raise ConfigError("`--stage`: is needed, such as --stage staging (or --list)")
    plan = make_plan(root, artifact, stage, version, rules)
    tags = () if dry_run else carry_out(root, plan)
    if as_json:
        print_json(
            {
                "artifact": plan.artifact,
                "stage": plan.stage,
                "version": plan.version,
                "commit": plan.commit,
                "new": plan.new,
                "replaces": plan.replaces,
                "held": list(plan.held),
                "tags": list(tags),
            }
        )
        return
    for line in plan.held:
        print(f"  {line}")
    kind = "new version" if plan.new else "version"
    done = "would be put into" if dry_run else "is now in"
    instead = f", in place of {plan.replaces}" if plan.replaces else ""
    print(f"{artifact}: {kind} {plan.version} of commit {plan.commit[:12]} {done} {stage}{instead}")
    if tags:
        print(f"publish with: dvc push && git push origin {' '.join(repr(tag) for tag in tags)}")


def _list(root: Path, as_json: bool) -> None:
    from macflow.lineage.promotion import artifacts_at, registered_versions

    entries: list[dict[str, Any]] = [
        {
            "artifact": name,
            "path": about["path"],
            "versions": [
                {
                    "version": found.name,
                    "commit": found.commit,
                    "registered": found.registered.isoformat(),
                    "stages": list(found.stages),
                }
                for found in registered_versions(root, name)
            ],
        }
        for name, about in artifacts_at(root, "HEAD").items()
    ]
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        print(f"{entry['artifact']} ({entry['path']})")
        for found in entry["versions"]:
            stages = ", ".join(found["stages"]) or "-"
            print(f"  {found['version']:<10} {found['commit'][:12]}  {found['registered'][:10]}  {stages}")
        if not entry["versions"]:
            print("  no version is registered")
