"""From a reproduced project to somebody else's machine: sign, promote, get, check, and the cards' numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project

from macflow.lineage.attestation import files_of, verify
from macflow.lineage.keys import read_public_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

# What four episodes of a policy trained for 20 steps can show.
EASY: dict[str, Any] = {
    "policy": {
        "staging": {
            "gates": {
                "metrics/evaluate.json": {"policy.return_mean": {"min": -1000}},
                "metrics/diagnose.json": {"w2": {"min": 0}, "checks.*.threshold": {"min": 0}},
            }
        },
        "production": {
            "after": "staging",
            "not_worse": [
                {
                    "file": "metrics/evaluate.json",
                    "metric": "policy.normalized_return",
                    "margin": 1000,
                    "same": ["env", "reference"],
                }
            ],
        },
    }
}


def macflow(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.run("python", "-m", "macflow.cli", *arguments)


def succeed(project: Project, *arguments: str) -> str:
    done = macflow(project, *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def refuse(project: Project, *arguments: str) -> str:
    done = macflow(project, *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stdout.startswith("macflow: ")
    return done.stdout


def set_rules(project: Project, rules: dict[str, Any]) -> None:
    (project.root / "promotion.yaml").write_text(yaml.safe_dump(rules))
    project.check("git", "commit", "--quiet", "--all", "--message=rules")


def tags(project: Project) -> list[str]:
    return project.check("git", "tag", "--list").split()


def test_a_version_goes_through_the_stages_and_others_get_its_bytes(project: Project, tmp_path: Path) -> None:
    set_rules(project, EASY)
    would = succeed(project, "promote", "--stage", "staging", "--dry-run")
    assert "new version v1.0.0" in would
    assert "would be put into staging" in would
    assert tags(project) == []
    assert "must have been in staging" in refuse(project, "promote", "--stage", "production")

    mean = json.loads((project.root / "metrics/evaluate.json").read_text())["policy"]["return_mean"]
    told = succeed(project, "promote", "policy", "--stage", "staging")
    assert f"`policy.return_mean` is {mean:.4g} (at least -1000)" in told
    assert "is now in staging" in told
    assert tags(project) == ["policy#staging#1", "policy@v1.0.0"]
    assert project.check("git", "cat-file", "-t", "policy@v1.0.0") == "tag\n"
    assert f"is {mean:.4g}" in project.check("git", "tag", "--list", "-n9", "policy@v1.0.0")

    # Another policy becomes the second version; the first stays what staging had.
    first = files_of(project.root / "models/policy")
    project.set_params({"distill": {"alpha": 1.0}})
    assert "differs from the last commit (params.yaml)" in refuse(project, "promote", "--stage", "staging")
    project.check("git", "commit", "--quiet", "--all", "--message=alpha")
    stale = refuse(project, "promote", "--stage", "staging", "--version", "v1.1.0")
    assert "not up to date, by dvc status (distill: params.yaml" in stale
    project.check("dvc", "repro", "evaluate", "diagnose")
    project.check("git", "commit", "--quiet", "--all", "--message=reproduced")
    second = files_of(project.root / "models/policy")
    assert second != first
    succeed(project, "promote", "--stage", "production", "--version", "v1.0.0")
    assert "new version v1.1.0" in succeed(project, "promote", "--stage", "staging")
    assert "in place of v1.0.0" in succeed(project, "promote", "--stage", "production", "--dry-run")
    listed = json.loads(succeed(project, "promote", "--list", "--json"))
    assert [(v["version"], v["stages"]) for v in listed[0]["versions"]] == [
        ("v1.1.0", ["staging"]),
        ("v1.0.0", ["production"]),
    ]

    for stage, files in (("production", first), ("staging", second)):
        folder = tmp_path / stage
        folder.mkdir()
        project.check(
            "dvc",
            "artifacts",
            "get",
            str(project.root),
            "policy",
            "--stage",
            stage,
            "-o",
            str(folder / "policy"),
        )
        assert files_of(folder / "policy") == files


def test_a_gate_that_fails_leaves_no_tag(project: Project) -> None:
    rules = json.loads(json.dumps(EASY))
    rules["policy"]["staging"]["gates"]["metrics/evaluate.json"]["policy.return_mean"] = {"min": 1000}
    set_rules(project, rules)
    told = refuse(project, "promote", "--stage", "staging")
    mean = json.loads((project.root / "metrics/evaluate.json").read_text())["policy"]["return_mean"]
    assert f"metrics/evaluate.json: `policy.return_mean` is {mean:.4g}, must be at least 1000" in told
    assert "promotion.yaml" in told
    assert tags(project) == []
    # Nor does one that git cannot make: the version is taken back where the stage cannot be assigned.
    set_rules(project, EASY)
    (project.root / ".git/refs/tags/policy#staging#1").mkdir(parents=True)
    (project.root / ".git/refs/tags/policy#staging#1/in-the-way").write_text(
        project.check("git", "rev-parse", "HEAD")
    )
    assert "no tag was made" in refuse(project, "promote", "--stage", "staging")
    assert tags(project) == ["policy#staging#1/in-the-way"]


def test_a_signed_policy_is_checked_with_nothing_but_the_files(project: Project, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    succeed(project, "lineage", "keygen", "--out", str(keys))
    told = succeed(project, "lineage", "sign", "models/policy", "--key", str(keys / "macflow.key"))
    commit = project.check("git", "rev-parse", "HEAD").strip()
    assert f"commit {commit}" in told
    assert "up to date" in project.check("dvc", "status"), "the bundle's hash is as it was"

    attestation = project.root / "models/policy.attestation.json"
    project.check("git", "add", "models/policy.attestation.json")
    project.check("git", "commit", "--quiet", "--message=signed")
    # With another key: the present attestation differs from the commit then, which is no obstacle.
    succeed(project, "lineage", "keygen", "--out", str(tmp_path / "others"))
    for key in (tmp_path / "others", keys):
        succeed(project, "lineage", "sign", "models/policy", "--key", str(key / "macflow.key"))
    project.check("git", "checkout", "--quiet", "models/policy.attestation.json")
    received = tmp_path / "received"
    received.mkdir()
    for path in ("models/policy", "models/policy.attestation.json"):
        project.check("dvc", "get", str(project.root), path, "-o", str(received / Path(path).name))
    assert (received / attestation.name).read_bytes() == attestation.read_bytes()

    found = verify(received / "policy", received / attestation.name, read_public_key(keys / "macflow.pub"))
    assert found.commit == commit
    definition = found.statement["predicate"]["buildDefinition"]
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    for section in ("flow", "critic", "distill", "training", "record", "dataset"):
        assert definition["externalParameters"][section] == params[section]
    named = {entry["name"]: entry["digest"] for entry in definition["resolvedDependencies"]}
    manifest = json.loads((project.root / "models/policy/policy.json").read_text())
    for path, digest in manifest["made_from"].items():
        assert named[path] == {"macflow_folder_sha256": digest}
    assert named["data/raw"] == {"macflow_folder_sha256": manifest["source"]["sha256"]}


def test_what_the_commit_did_not_make_is_not_signed(project: Project, tmp_path: Path) -> None:
    succeed(project, "lineage", "keygen", "--out", str(tmp_path / "keys"))
    sign = ("lineage", "sign", "models/policy", "--key", str(tmp_path / "keys/macflow.key"))
    project.set_params({"distill": {"alpha": 1.0}})
    assert "differs from the last commit (params.yaml)" in refuse(project, *sign)
    project.check("git", "checkout", "--quiet", "params.yaml")
    code = project.root / "macflow/algorithms/distillation.py"
    code.write_text(code.read_text() + "\n")
    project.check("git", "commit", "--quiet", "--all", "--message=code")
    assert "macflow/algorithms/distillation.py: not what distill was made with" in refuse(project, *sign)
    project.check("git", "reset", "--quiet", "--hard", "HEAD^")
    weights = project.root / "models/policy/policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    weights.with_name("extra").write_text("x")
    assert "models/policy: not what dvc.lock records for it" in refuse(project, *sign)
    assert not (project.root / "models/policy.attestation.json").exists()


def test_the_cards_numbers_are_those_of_the_metrics(project: Project) -> None:
    read = {name: json.loads((project.root / f"metrics/{name}.json").read_text()) for name in
            ("evaluate", "evaluate_finetuned", "diagnose", "describe")}  # fmt: skip
    card = succeed(project, "policy", "card", "models/policy")
    for who in ("policy", "flow", "behaviour", "random"):
        found = read["evaluate"][who]
        for mean, base in (("return_mean", "return"), ("normalized_return", "normalized_return")):
            low, high = found[f"{base}_ci95_low"], found[f"{base}_ci95_high"]
            assert f"| {found[mean]:.4g} ({low:.4g} to {high:.4g}) |" in card
    for name, check in read["diagnose"]["checks"].items():
        raised = "yes" if check["raised"] else "no"
        row = f"| {name.replace('_', ' ')} | {check['value']:.4g} | {check['threshold']:.4g} | {raised} |"
        assert row in card
        assert (f"Warning: {name.replace('_', ' ')} was raised" in card) == check["raised"]
    timings = json.loads((project.root / "metrics/timings/evaluate.json").read_text())
    assert f"median {timings['policy']['latency_us_p50']:.4g} microseconds" in card
    run_card = json.loads((project.root / "metrics/run_cards/distill.json").read_text())
    assert run_card["git_commit"] in card
    assert (
        "Stages, in order: `record`, `prepare`, `train_flow`, `teacher`, `train_critic`, `distill`." in card
    )
    found = yaml.safe_load(card[4:].split("\n---\n", 1)[0])["model-index"][0]["results"][0]["metrics"]
    assert [metric["value"] for metric in found] == [
        read["evaluate"]["policy"]["return_mean"],
        read["evaluate"]["policy"]["normalized_return"],
    ]

    card = succeed(project, "policy", "card", "models/finetuned")
    for who in ("kept", "last", "offline"):
        assert f"| {read['evaluate_finetuned'][who]['return_mean']:.4g} (" in card
    assert "## Diagnosis\n\nUnknown." in card

    card = succeed(project, "dataset", "card", "data/prepared")
    assert f"| return, mean | {read['describe']['return']['mean']:.4g} |" in card
    assert f"| saco | {read['describe']['saco']:.4g} |" in card
    assert f"constant features | {len(read['describe']['constant_features'])}:" in card
    validation = json.loads((project.root / "reports/validation/validation.json").read_text())
    for outcome in validation["expectations"]:
        assert f"| {outcome['name'].replace('_', ' ')}: " in card
    assert "Missing" not in card

    # Taken away, they are said to be missing; what is left is still told.
    shutil.rmtree(project.root / "reports/validation")
    (project.root / "metrics/describe.json").unlink()
    card = succeed(project, "dataset", "card", "data/prepared")
    assert "Missing: metrics/describe.json is missing" in card
    assert "Missing: reports/validation/validation.json is missing" in card
    assert "| episodes | 8 |" in card
