"""Which version of an artifact serves which stage: rules on its metrics first, then GTO's git tags.

A version is what git and DVC hold at one commit, so metrics are read from that commit and never from the
working tree. Nothing is pushed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from macflow.lineage.locked import LOCK, Lock, check_clean, file_at, git
from macflow.types import ConfigError, DataError, MacflowError

FIRST_VERSION = "v1.0.0"
VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
NUMBERS = (int, float)
STAGES_SHOWN = 3


class Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bound(Rule):
    """What one metric must be."""

    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    equals: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max is None and self.equals is None:
            raise ValueError("needs `min`, `max` or `equals`")
        return self

    def broken(self, value: Any) -> str | None:
        """Say what `value` had to be, or None where it is."""
        if self.equals is not None and (type(value), value) != (type(self.equals), self.equals):
            return f"must be {_shown(self.equals)}"
        number = isinstance(value, NUMBERS) and not isinstance(value, bool) and math.isfinite(value)
        if self.min is not None and not (number and value >= self.min):
            return f"must be at least {_shown(self.min)}"
        if self.max is not None and not (number and value <= self.max):
            return f"must be at most {_shown(self.max)}"
        return None

    def __str__(self) -> str:
        parts = (("at least", self.min), ("at most", self.max), ("equal to", self.equals))
        return " and ".join(f"{word} {_shown(value)}" for word, value in parts if value is not None)


class NotWorse(Rule):
    """A metric, the more the better, that must not fall behind what is in the stage now.

    With 95% intervals of both, the lower end of the difference's must lie above -margin.
    """

    file: str
    # The mean; NAME_ci95_low and NAME_ci95_high lie beside it (NAME without _mean).
    metric: str
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # What must be equal in both files for the comparison to mean anything.
    same: tuple[str, ...] = ()


class StageRules(Rule):
    """What a version must show before it is assigned to a stage."""

    # The stage that it must have been in before.
    after: str | None = None
    # File -> metric, dotted, `*` for every name -> bound.
    gates: dict[str, dict[str, Bound]] = {}
    not_worse: tuple[NotWorse, ...] = ()


class Rules(RootModel[dict[str, dict[str, StageRules]]]):
    """Artifact -> stage -> rules."""

    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class Version:
    """A registered version of an artifact."""

    name: str
    commit: str
    registered: datetime
    # Stages that it is in now, and all that it was ever in.
    stages: tuple[str, ...]
    once: frozenset[str]


@dataclass(frozen=True)
class Plan:
    """A promotion that nothing speaks against."""

    artifact: str
    stage: str
    version: str
    commit: str
    # Whether the version has to be registered first.
    new: bool
    # One sentence for each rule that held.
    held: tuple[str, ...]
    # Version that is in the stage until then.
    replaces: str | None

    @property
    def message(self) -> str:
        """Return what the tags are annotated with: the metrics that spoke for it."""
        return "\n".join([f"{self.artifact} {self.version} for {self.stage}", "", *self.held])


def read_rules(file: Path) -> Rules:
    """Read promotion.yaml; a missing file or a rule of another form raises `ConfigError`."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: file not found; docs/registry.md shows one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Rules.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, e['loc']))}`: {e['msg']} (received {e['input']!r})" for e in error.errors()
        )
        raise ConfigError(f"{file}: {problems}") from None


def make_plan(root: Path, artifact: str, stage: str, version: str | None, rules_file: Path) -> Plan:
    """Check whether an artifact may be promoted, and say how that would be done. Changes nothing.

    Args:
        root: the project, where dvc.yaml lies.
        version: a registered one, or a new one for the last commit. None: the newest one with the same bytes
            as the last commit's, else a new one.

    Raises:
        ConfigError: where the artifact, the stage or the version is unknown or malformed.
        DataError: naming what is not committed or not up to date, or every rule that is broken with the
            metric, its value, the bound and the file.
    """
    rules = read_rules(rules_file)
    if artifact not in rules.root:
        raise ConfigError(f"{rules_file}: has no rules for `{artifact}` (it has {_names(rules.root)})")
    if stage not in rules.root[artifact]:
        raise ConfigError(
            f"{rules_file}: has no stage `{stage}` for `{artifact}` (it has {_names(rules.root[artifact])})"
        )
    wanted = rules.root[artifact][stage]
    check_clean(root)
    head = git(root, "rev-parse", "HEAD").strip()
    if not rules_file.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{rules_file}: must lie in the project and be committed with it")
    file_at(root, head, rules_file.resolve().relative_to(root.resolve()).as_posix())
    versions = registered_versions(root, artifact)
    chosen = _choose(root, artifact, versions, head, version)
    name, commit, new = (chosen.name, chosen.commit, False) if chosen else (version, head, True)
    record = _Record(root, commit, artifact)
    if name is None:
        name = _next_version(versions)
    present = next((v for v in versions if stage in v.stages), None)
    if present is not None and present.name == name:
        raise DataError(f"{artifact} {name} is in {stage} already")
    if wanted.after is not None and (chosen is None or wanted.after not in chosen.once):
        raise DataError(
            f"{artifact} {name}: must have been in {wanted.after} before {stage}, says {rules_file}; "
            f"run: macflow promote {artifact} --stage {wanted.after}"
        )
    files = [*wanted.gates, *(rule.file for rule in wanted.not_worse)]
    record.check_belong(rules_file, files)
    if new:
        _check_status(root, record, files)
    before = None if present is None else _Record(root, present.commit, artifact)
    judged = list(_judge(record, wanted, before, present))
    broken = [text for good, text in judged if not good]
    if broken:
        raise DataError(f"{artifact} {name} does not get into {stage} ({rules_file}): {'; '.join(broken)}")
    return Plan(
        artifact,
        stage,
        name,
        commit,
        new,
        tuple(text for _, text in judged),
        present.name if present else None,
    )


def carry_out(root: Path, plan: Plan) -> tuple[str, ...]:
    """Register the version, where it is new, and assign the stage; return the git tags made.

    Where the second fails the first is undone.
    """
    import gto.api
    from gto.exceptions import GTOException
    from scmrepo.exceptions import SCMError

    made: list[str] = []
    _pass_the_second(root, plan)
    try:
        if plan.new:
            found = gto.api.register(
                root, plan.artifact, plan.commit, version=plan.version, message=plan.message
            )
            made.append(str(found.tag))
        # Forced, for GTO holds that a version stays in a stage for ever; it may come back here.
        found = gto.api.assign(
            root,
            plan.artifact,
            plan.stage,
            version=plan.version,
            message=plan.message,
            simple=False,
            force=True,
        )
        made.append(str(found.tag))
    except (GTOException, SCMError, OSError, KeyError, ValueError) as error:
        for tag in made:
            git(root, "tag", "--delete", tag)
        raise DataError(f"{plan.artifact} {plan.version}: no tag was made: {error}") from None
    return tuple(made)


def registered_versions(root: Path, artifact: str) -> tuple[Version, ...]:
    """Return the registered versions of an artifact, the highest first.

    In a stage is the version that was assigned to it last: the one that `dvc artifacts get` takes.
    """
    commits: dict[str, tuple[str, datetime]] = {}
    now: dict[str, str] = {}
    once: defaultdict[str, set[str]] = defaultdict(set)
    for event in _events(root, artifact):
        match event.action:
            case "register":
                commits[event.version] = (event.commit, event.made)
            case "deregister":
                commits.pop(event.version, None)
            case "assign":
                now[event.stage] = event.commit
                once[event.commit].add(event.stage)
            case "unassign" if now.get(event.stage) == event.commit:
                del now[event.stage]
    versions = (
        Version(
            name,
            commit,
            made,
            tuple(sorted(stage for stage, holder in now.items() if holder == commit)),
            frozenset(once[commit]),
        )
        for name, (commit, made) in commits.items()
    )
    return tuple(sorted(versions, key=lambda v: _numbers(v.name), reverse=True))


def artifacts_at(root: Path, commit: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the section `artifacts` of dvc.yaml at a commit."""
    try:
        content = yaml.safe_load(file_at(root, commit, "dvc.yaml"))
        found: Mapping[str, Mapping[str, Any]] = content.get("artifacts") or {}
    except (yaml.YAMLError, AttributeError) as error:
        raise DataError(f"dvc.yaml at {commit[:12]}: no pipeline of DVC's: {error!r}") from None
    return found


@dataclass(frozen=True)
class _Event:
    """What one of GTO's tags says."""

    action: str
    # Empty where the tag is not about one.
    version: str
    stage: str
    commit: str
    made: datetime
    counter: int


def _events(root: Path, artifact: str) -> list[_Event]:
    """Return what the tags of an artifact say, in the order of their making."""
    from gto.tag import find, parse_name
    from scmrepo.exceptions import SCMError
    from scmrepo.git import Git

    found = []
    try:
        scm = Git(str(root), search_parent_directories=True)
    except SCMError as error:
        raise DataError(f"{root}: git cannot be read: {error}") from None
    with closing(scm):
        for tag in find(name=artifact, scm=scm):
            said = parse_name(tag.name)
            found.append(
                _Event(
                    said["action"].value,
                    said.get("version", ""),
                    said.get("stage", ""),
                    tag.target,
                    datetime.fromtimestamp(tag.tag_time, UTC),
                    int(said.get("counter", 0)),
                )
            )
    # Tags know whole seconds only; of one second the higher counter is the later.
    return sorted(found, key=lambda event: (event.made, event.counter))


class _Record:
    """What git has of an artifact at a commit: its hash, the lock, the metrics."""

    def __init__(self, root: Path, commit: str, artifact: str) -> None:
        self.root, self.commit, self.artifact = root, commit, artifact
        known = artifacts_at(root, commit)
        where = f"at {commit[:12]}"
        if artifact not in known:
            raise ConfigError(f"dvc.yaml {where}: names no artifact `{artifact}` (it names {_names(known)})")
        self.path = str(known[artifact]["path"])
        self.lock = Lock(file_at(root, commit, LOCK), f"{LOCK} {where}")
        maker, md5 = self.lock.maker(self.path), self.lock.output_md5(self.path)
        if maker is None or md5 is None:
            raise DataError(f"{LOCK} {where}: does not list {self.path}; run dvc repro and commit it")
        self.maker, self.md5 = maker, md5

    def check_belong(self, rules_file: Path, files: list[str]) -> None:
        """Raise where a file of the rules is not the artifact's, or the lock is at odds with itself."""
        for file in files:
            maker = self.lock.maker(file)
            if maker is None:
                raise ConfigError(f"{rules_file}: {file}: no stage in {LOCK} writes it")
            if self.maker not in self.lock.behind(maker) and maker not in self.lock.behind(self.maker):
                raise ConfigError(f"{rules_file}: {file}: has nothing to do with {self.path}")
            self.lock.check_consistent(maker)

    def metrics(self, file: str) -> Any:
        """Return a metrics file of that commit, as the lock records it."""
        text = file_at(self.root, self.commit, file)
        maker = self.lock.maker(file)
        wanted = None if maker is None else self.lock.outputs(maker).get(file)
        if hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() != wanted:
            raise DataError(f"{file} at {self.commit[:12]}: not what {LOCK} records for it")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file} at {self.commit[:12]}: not valid JSON: {error}") from None


def _pass_the_second(root: Path, plan: Plan) -> None:
    """Wait for the next second where the stage was assigned in this one: DVC sorts tags by whole seconds."""
    made = [event.made for event in _events(root, plan.artifact) if event.stage == plan.stage]
    if made:
        time.sleep(min(1.0, max(0.0, max(made).timestamp() + 1 - time.time())))


def _choose(
    root: Path, artifact: str, versions: tuple[Version, ...], head: str, wanted: str | None
) -> Version | None:
    """Return the registered version to promote, None where a new one is to be registered."""
    if wanted is None:
        md5 = _Record(root, head, artifact).md5
        return next((v for v in versions if _md5_at(root, v.commit, artifact) == md5), None)
    if not VERSION.fullmatch(wanted):
        raise ConfigError(f"`--version`: must be such as {FIRST_VERSION} (received {wanted!r})")
    named = next((v for v in versions if v.name == wanted), None)
    if named is None and (here := next((v for v in versions if v.commit == head), None)):
        raise ConfigError(
            f"`--version`: the last commit is {artifact} {here.name} already (received {wanted})"
        )
    return named


def _md5_at(root: Path, commit: str, artifact: str) -> str | None:
    try:
        return _Record(root, commit, artifact).md5
    except MacflowError:  # registered by hand, at a commit that does not have it
        return None


def _next_version(versions: tuple[Version, ...]) -> str:
    if not versions:
        return FIRST_VERSION
    major, minor, _ = _numbers(versions[0].name)
    return f"v{major}.{minor + 1}.0"


def _numbers(version: str) -> tuple[int, int, int]:
    found = VERSION.match(version)
    assert found is not None, "GTO registers semantic versions only"
    return int(found[1]), int(found[2]), int(found[3])


def _check_status(root: Path, record: _Record, files: list[str]) -> None:
    """Raise where DVC finds that something does not fit: code, parameters, data or outputs."""
    stages = {record.maker, *(maker for file in files if (maker := record.lock.maker(file)) is not None)}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", *sorted(stages)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"{root}: dvc status: {' '.join(done.stderr.split())}")
    changed = json.loads(done.stdout)
    if changed:
        listed = [f"{stage}: {_changes(entries)}" for stage, entries in changed.items()]
        more = f"; and {len(listed) - STAGES_SHOWN} more stages" if len(listed) > STAGES_SHOWN else ""
        told = "; ".join(listed[:STAGES_SHOWN]) + more
        raise DataError(f"not up to date, by dvc status ({told}); run `dvc repro` and commit, or `dvc pull`")


def _changes(entries: Any) -> str:
    """Return DVC's nested lists of changes as words."""
    found = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
            continue
        for changes in entry.values():
            found += [f"{path} {state}" for path, state in changes.items()]
    return ", ".join(found)


def _judge(
    record: _Record, rules: StageRules, before: _Record | None, present: Version | None
) -> Iterator[tuple[bool, str]]:
    for file, bounds in rules.gates.items():
        content = record.metrics(file)
        for metric, bound in bounds.items():
            found = list(_values(content, metric.split(".")))
            if not found:
                yield False, f"{file}: `{metric}` is missing, {bound} is asked for"
            for name, value in found:
                broken = bound.broken(value)
                text = f"{file}: `{name}` is {_shown(value)}"
                yield broken is None, f"{text}, {broken}" if broken else f"{text} ({bound})"
    for rule in rules.not_worse:
        if before is None or present is None:
            yield True, f"{rule.file}: `{rule.metric}`: nothing is in this stage to compare with"
        else:
            yield _not_worse(rule, record.metrics(rule.file), before.metrics(rule.file), present.name)


def _not_worse(rule: NotWorse, now: Any, before: Any, holder: str) -> tuple[bool, str]:
    for name in rule.same:
        ours, theirs = _value(now, name), _value(before, name)
        if ours != theirs:
            return False, (
                f"{rule.file}: `{name}` is {_shown(ours)}, {_shown(theirs)} for {holder}: "
                f"`{rule.metric}` cannot be compared"
            )
    measured = []
    for whose, content in (("", now), (f" of {holder}", before)):
        base = rule.metric.removesuffix("_mean")
        values = [_value(content, name) for name in (rule.metric, f"{base}_ci95_low", f"{base}_ci95_high")]
        if not all(isinstance(value, NUMBERS) for value in values):
            return False, f"{rule.file}: `{rule.metric}`{whose} has no value with a 95% interval"
        measured.append(values)
    (mean, low, _), (other, _, high) = measured
    # Both means vary: distances to the ends of independent intervals add as their squares.
    lowest = mean - other - math.hypot(mean - low, high - other)
    text = (
        f"{rule.file}: `{rule.metric}` is {_shown(mean)}, {_shown(other)} for {holder}: "
        f"the difference is {_shown(mean - other)}, at 95% not below {_shown(lowest)}"
    )
    good = lowest >= -rule.margin
    allowed = f"at least {_shown(-rule.margin)}"
    return good, f"{text} ({allowed})" if good else f"{text}, must be {allowed}"


def _values(content: Any, names: list[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values at a dotted name, in which `*` stands for every name, with their full names."""
    if not names:
        yield before, content
    elif isinstance(content, Mapping):
        for name in content if names[0] == "*" else [names[0]]:
            if name in content:
                yield from _values(content[name], names[1:], f"{before}.{name}" if before else name)


def _value(content: Any, dotted: str) -> Any:
    return next((value for _, value in _values(content, dotted.split("."))), None)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
