"""Rules of promotion: their form, and what they say of metrics."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import fail, run

from macflow.files import write_json
from macflow.lineage.locked import Lock, dvc_md5
from macflow.lineage.promotion import Bound, carry_out, make_plan, read_rules, registered_versions
from macflow.types import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
RULES: dict[str, Any] = {
    "policy": {
        "staging": {
            "gates": {
                "metrics/evaluate.json": {"policy.return_mean": {"min": 10}},
                "metrics/diagnose.json": {"checks.*.raised": {"equals": False}},
            }
        },
        "production": {
            "after": "staging",
            "not_worse": [
                {
                    "file": "metrics/evaluate.json",
                    "metric": "policy.return_mean",
                    "margin": 1,
                    "same": ["env"],
                }
            ],
        },
    }
}


def evaluation(mean: float, width: float = 0.5, env: str = "mpe/spread") -> dict[str, Any]:
    low, high = mean - width, mean + width
    return {"env": env, "policy": {"return_mean": mean, "return_ci95_low": low, "return_ci95_high": high}}


def diagnosis(raised: bool = False) -> dict[str, Any]:
    return {"checks": {"q_collapse": {"raised": raised}, "mode_dropping": {"raised": False}}}


class Registry:
    """A git repository with a committed dvc.lock, as `dvc repro` would leave it; no DVC runs here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet", "--initial-branch=main")
        (root / "promotion.yaml").write_text(yaml.safe_dump(RULES, sort_keys=False))
        (root / "dvc.yaml").write_text("artifacts:\n  policy: {path: models/policy, type: model}\n")
        (root / ".gitignore").write_text("/models\n")

    def git(self, *arguments: str) -> str:
        done = subprocess.run([*GIT, *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def make(self, weights: str, metrics: Mapping[str, Any], tag: str | None = None) -> str:
        """Commit a policy with its metrics; `tag` is GTO's of a version."""
        folder = self.root / "models" / "policy"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(weights)
        policy = {"path": "models/policy", "md5": dvc_md5(folder)}
        stages: dict[str, Any] = {"distill": {"outs": [policy]}}
        for name, content in metrics.items():
            file = self.root / "metrics" / f"{name}.json"
            write_json(file, content)
            out = {"path": f"metrics/{name}.json", "md5": dvc_md5(file)}
            stages[name] = {"deps": [policy], "outs": [out]}
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={weights}")
        if tag is not None:
            self.git("tag", "--annotate", f"policy@{tag}", "--message=by hand")
        return self.git("rev-parse", "HEAD")

    def assign(self, stage: str, number: int, version: str) -> None:
        self.git(
            "tag", "--annotate", f"policy#{stage}#{number}", f"policy@{version}^{{}}", "--message=by hand"
        )

    def rules(self, rules: Mapping[str, Any]) -> None:
        (self.root / "promotion.yaml").write_text(yaml.safe_dump(dict(rules)))
        self.git("commit", "--quiet", "--all", "--message=rules")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    # Who tags, for git as GTO calls it.
    monkeypatch.setenv("GIT_COMMITTER_NAME", "test")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "test@example.org")
    (tmp_path / "project").mkdir()
    return Registry(tmp_path / "project")


def plan(registry: Registry, stage: str, version: str | None = None) -> Any:
    return make_plan(registry.root, "policy", stage, version, registry.root / "promotion.yaml")


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ({"min": 3}, 3, None),
        ({"min": 3}, 2.999, "must be at least 3"),
        ({"max": 3}, 3.0, None),
        ({"max": 3}, 3.5, "must be at most 3"),
        ({"min": 0, "max": 1}, 2, "must be at most 1"),
        ({"min": 3}, None, "must be at least 3"),
        ({"min": 3}, math.nan, "must be at least 3"),
        ({"max": 3}, -math.inf, "must be at most 3"),
        # A flag is no number and a number no flag.
        ({"min": 0}, True, "must be at least 0"),
        ({"equals": True}, 1, "must be true"),
        ({"equals": False}, False, None),
        ({"equals": "ok"}, "ko", "must be ok"),
    ],
)
def test_bounds(bound: dict[str, Any], value: Any, said: str | None) -> None:
    assert Bound(**bound).broken(value) == said


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"policy": {"staging": {"gates": {"m.json": {"a": {}}}}}}, "needs `min`, `max` or `equals`"),
        ({"policy": {"staging": {"gate": {}}}}, "`policy.staging.gate`"),
        ({"policy": {"staging": {"gates": {"m.json": {"a": {"min": "much"}}}}}}, "received 'much'"),
        ({"policy": {"staging": {"not_worse": [{"file": "m.json", "metric": "a", "margin": -1}]}}}, "margin"),
        (["policy"], "received ['policy']"),
    ],
)
def test_rules_of_another_form_are_told(tmp_path: Path, rules: Any, words: str) -> None:
    file = tmp_path / "promotion.yaml"
    file.write_text(yaml.safe_dump(rules))
    with pytest.raises(ConfigError) as told:
        read_rules(file)
    assert words in str(told.value)
    assert str(file) in str(told.value)


def test_the_projects_own_rules_name_artifacts_and_metrics_that_exist() -> None:
    rules = read_rules(ROOT / "promotion.yaml").root
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert rules.keys() <= artifacts.keys()
    lock = Lock((ROOT / "dvc.lock").read_text(), "dvc.lock")
    for artifact, stages in rules.items():
        maker = lock.maker(artifacts[artifact]["path"])
        assert maker is not None
        for stage in stages.values():
            assert stage.after is None or stage.after in stages
            for file, bounds in stage.gates.items():
                writer = lock.maker(file)
                assert writer is not None
                assert maker in lock.behind(writer) or writer in lock.behind(maker)
                content = json.loads((ROOT / file).read_text())
                for metric in bounds:
                    value = content
                    for name in metric.split("."):
                        value = next(iter(value.values())) if name == "*" else value[name]


def test_a_registered_version_is_judged_by_the_metrics_of_its_own_commit(registry: Registry) -> None:
    first = registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    registry.make("bad", {"evaluate": evaluation(3), "diagnose": diagnosis()}, "v1.1.0")
    found = plan(registry, "staging", "v1.0.0")
    assert (found.version, found.commit, found.new, found.replaces) == ("v1.0.0", first, False, None)
    assert found.held == (
        "metrics/evaluate.json: `policy.return_mean` is 12 (at least 10)",
        "metrics/diagnose.json: `checks.mode_dropping.raised` is false (equal to false)",
        "metrics/diagnose.json: `checks.q_collapse.raised` is false (equal to false)",
    )
    assert "12" in found.message
    with pytest.raises(DataError, match=r"evaluate.json: `policy.return_mean` is 3, must be at least 10"):
        plan(registry, "staging", "v1.1.0")
    # Without a version: the one with the bytes of the last commit.
    with pytest.raises(DataError, match=r"policy v1.1.0 does not get into staging"):
        plan(registry, "staging")
    assert registry.git("tag", "--list") == "policy@v1.0.0\npolicy@v1.1.0"


def test_every_broken_rule_is_named(registry: Registry) -> None:
    registry.make("weak", {"evaluate": evaluation(3), "diagnose": diagnosis(raised=True)}, "v1.0.0")
    with pytest.raises(DataError) as told:
        plan(registry, "staging")
    assert "`policy.return_mean` is 3, must be at least 10" in str(told.value)
    assert "metrics/diagnose.json: `checks.q_collapse.raised` is true, must be false" in str(told.value)
    assert "promotion.yaml" in str(told.value)
    assert "mode_dropping" not in str(told.value)


def test_a_metric_that_is_missing_does_not_pass(registry: Registry) -> None:
    registry.make("odd", {"evaluate": {"env": "x"}, "diagnose": {"checks": {}}}, "v1.0.0")
    with pytest.raises(DataError) as told:
        plan(registry, "staging")
    assert "`policy.return_mean` is missing, at least 10 is asked for" in str(told.value)
    assert "`checks.*.raised` is missing" in str(told.value)


def test_production_asks_for_staging_first(registry: Registry) -> None:
    registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    with pytest.raises(DataError, match="must have been in staging before production"):
        plan(registry, "production")
    registry.assign("staging", 1, "v1.0.0")
    found = plan(registry, "production")
    assert "nothing is in this stage to compare with" in found.held[0]
    with pytest.raises(DataError, match="is in staging already"):
        plan(registry, "staging")


@pytest.mark.parametrize(
    ("now", "passes"),
    [
        # 12 +- 0.5 is in production: the difference's interval is 0.71 wide to either side.
        (evaluation(12), True),
        (evaluation(11.8), True),
        (evaluation(11.6), False),
        (evaluation(14), True),
        # As good, but nobody can tell: too few episodes.
        (evaluation(12, width=3), False),
        (evaluation(12, env="game/xor"), False),
        ({"env": "mpe/spread", "policy": {"return_mean": 12}}, False),
    ],
)
def test_production_must_not_get_worse(registry: Registry, now: dict[str, Any], passes: bool) -> None:
    registry.make("old", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    registry.make("new", {"evaluate": now, "diagnose": diagnosis()}, "v2.0.0")
    for number, (stage, version) in enumerate(
        [("staging", "v1.0.0"), ("production", "v1.0.0"), ("staging", "v2.0.0")], start=1
    ):
        registry.assign(stage, number, version)
    if passes:
        assert plan(registry, "production").replaces == "v1.0.0"
    else:
        with pytest.raises(DataError, match=r"policy v2.0.0 does not get into production"):
            plan(registry, "production")
    # The version that staging had before v2.0.0 was once in it, which is enough.
    assert [(v.name, v.stages) for v in registered_versions(registry.root, "policy")] == [
        ("v2.0.0", ("staging",)),
        ("v1.0.0", ("production",)),
    ]


def test_a_version_can_come_back(registry: Registry) -> None:
    registry.make("old", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    registry.make("new", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v2.0.0")
    for version in ("v1.0.0", "v2.0.0", "v1.0.0"):
        tags = carry_out(registry.root, plan(registry, "staging", version))
        holder = next(v for v in registered_versions(registry.root, "policy") if v.stages)
        assert holder.name == version
        # As DVC has it: the last of them by time.
        latest = registry.git("for-each-ref", "--sort=-taggerdate", "--count=1", "--format=%(refname:short)",
                              "refs/tags/policy#*")  # fmt: skip
        assert tags == (latest,)
    registry.git("tag", "--annotate", "policy#staging!#4", "policy@v1.0.0^{}", "--message=by hand")
    assert not any(v.stages for v in registered_versions(registry.root, "policy"))


def test_metrics_that_the_lock_does_not_know_are_refused(registry: Registry) -> None:
    registry.make("good", {"evaluate": evaluation(3), "diagnose": diagnosis()})
    write_json(registry.root / "metrics" / "evaluate.json", evaluation(99))
    registry.git("commit", "--quiet", "--all", "--message=polished")
    registry.git("tag", "--annotate", "policy@v1.0.0", "--message=by hand")
    with pytest.raises(DataError, match=r"evaluate.json at \w{12}: not what dvc.lock records"):
        plan(registry, "staging")


def test_metrics_of_another_policy_are_refused(registry: Registry) -> None:
    registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()})
    lock = yaml.safe_load((registry.root / "dvc.lock").read_text())
    lock["stages"]["evaluate"]["deps"] = [{"path": "models/policy", "md5": "0" * 32 + ".dir"}]
    (registry.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    registry.git("commit", "--quiet", "--all", "--message=stale")
    registry.git("tag", "--annotate", "policy@v1.0.0", "--message=by hand")
    with pytest.raises(DataError, match="distill has made another models/policy than evaluate ran with"):
        plan(registry, "staging")


def test_what_is_not_committed_is_refused(registry: Registry) -> None:
    registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    (registry.root / "promotion.yaml").write_text(yaml.safe_dump({"policy": {"staging": {}}}))
    with pytest.raises(DataError, match=r"differs from the last commit \(promotion.yaml\)"):
        plan(registry, "staging")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--stage", "staging"], "has no rules for `nothing` (it has policy)"),
        (["--stage", "nowhere"], "has no stage `nowhere` for `policy` (it has staging, production)"),
        ([], "`--stage`: is needed"),
        (["--stage", "staging", "--rules", "../promotion.yaml"], "must lie in the project"),
        (["--stage", "staging", "--version", "1.0"], "must be such as v1.0.0 (received '1.0')"),
        (["--stage", "staging", "--version", "v3.0.0"], "the last commit is policy v1.0.0 already"),
    ],
)
def test_mistakes_are_told(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()}, "v1.0.0")
    (registry.root.parent / "promotion.yaml").write_text(yaml.safe_dump(RULES))
    monkeypatch.chdir(registry.root)
    assert words in fail(capsys, "promote", *arguments)
    assert registry.git("tag", "--list") == "policy@v1.0.0"


def test_the_list_shows_what_is_where(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.make("good", {"evaluate": evaluation(12), "diagnose": diagnosis()})
    monkeypatch.chdir(registry.root)
    assert run("promote", "--list") == "policy (models/policy)\n  no version is registered\n"
    registry.git("tag", "--annotate", "policy@v1.0.0", "--message=by hand")
    registry.assign("staging", 1, "v1.0.0")
    shown = json.loads(run("promote", "--list", "--json"))
    assert shown[0]["versions"][0]["stages"] == ["staging"]
    assert "v1.0.0" in run("promote", "--list")
