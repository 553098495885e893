"""What data cards and model cards share: safe Markdown, front matter, and metrics that belong to the subject.

Whatever comes from a file is data: it is escaped, so that no name becomes markup. Metrics are believed only
where dvc.lock ties them to the very bytes that the card is about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from macflow.files import read_json
from macflow.lineage.locked import Project, project_of
from macflow.types import DataError, MultiAgentSpec

UNKNOWN = "unknown"
# Text that is the same as code and as text, whatever renders it.
_PLAIN_CODE = re.compile(r"[A-Za-z0-9_./:=+, \-]*[A-Za-z0-9_./:=+\-]")
_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")
_YAML_MARKUP = re.compile(r"[<>&`\[\]]")
_AGENTS_SHOWN = 20


class Markdown(str):
    """Text that is Markdown already: it goes into a card as it is."""


@dataclass(frozen=True)
class Metrics:
    """A metrics file, or why the card cannot use it."""

    file: str
    content: Mapping[str, Any] | None
    # Empty where there is content.
    missing: str = ""


class Subject:
    """What a card is about: a folder, and the project that it lies in, if any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.project: Project | None = project_of(path)
        self.stage: str | None = None
        if self.project is not None:
            key = self.project.key(path)
            if self.project.holds(key, self.project.lock.output_md5(key)):
                self.stage = self.project.lock.maker(key)

    @property
    def params(self) -> Mapping[str, Any] | None:
        """Return the parameters of all stages behind it, None where no lock knows it."""
        if self.project is None or self.stage is None:
            return None
        return self.project.lock.params(self.stage)

    @property
    def stages(self) -> Sequence[str]:
        """Return the stages behind it in the order of making, none where no lock knows it."""
        return () if self.project is None or self.stage is None else self.project.lock.behind(self.stage)

    def metrics(self, file: str) -> Metrics:
        """Read a JSON file of the project that was written with, or measured on, the subject as it is now."""
        if self.project is None:
            return Metrics(file, None, f"{file}: no dvc.lock above {self.path} ties metrics to it")
        if not (self.project.root / file).is_file():
            return Metrics(file, None, f"{file} is missing")
        if self.stage is None or not self._tied(file):
            return Metrics(file, None, f"{file} is not of this version of {self.path}, by dvc.lock")
        return Metrics(file, self._read(file))

    def beside(self, file: str) -> Metrics:
        """Read a JSON file of the project that DVC does not keep, such as timings: nothing ties it."""
        if self.project is None or not (self.project.root / file).is_file():
            return Metrics(file, None, f"{file} is missing")
        return Metrics(file, self._read(file))

    def _read(self, file: str) -> Mapping[str, Any]:
        assert self.project is not None
        return checked_mapping(self.project.root / file, read_json(self.project.root / file))

    def _tied(self, file: str) -> bool:
        assert self.project is not None
        lock, key = self.project.lock, self.project.key(self.path)
        maker = lock.maker(file)
        if maker is None:
            return False
        output = next(path for path in (file, *map(str, Path(file).parents)) if path in lock.outputs(maker))
        known = {**lock.inputs(maker), **lock.outputs(maker)}
        return known.get(key) == lock.output_md5(key) and self.project.holds(output, known[output])


def plain(text: Any) -> str:
    """Return text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown(value: Any) -> Markdown:
    """Return any value as Markdown that shows it and does nothing else; None is unknown."""
    if isinstance(value, Markdown):
        return value
    match value:
        case None:
            return Markdown(UNKNOWN)
        case bool():
            return Markdown("yes" if value else "no")
        case int():
            return Markdown(f"{value:,}")
        case float():
            return Markdown(f"{value:.4g}")
        case Mapping() | list() | tuple():
            value = json.dumps(value, sort_keys=True)
    text = plain(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markdown(_MARKUP.sub(r"\\\1", text))


def code(value: Any) -> Markdown:
    """Return a name as code where that is safe, else as escaped text."""
    if value is None:
        return Markdown(UNKNOWN)
    text = plain(value)
    return Markdown(f"`{text}`") if _PLAIN_CODE.fullmatch(text) else markdown(text)


def with_interval(content: Mapping[str, Any], mean: str) -> Markdown:
    """Return a mean with its 95% interval, as far as they were measured."""
    if content.get(mean) is None:
        return Markdown(UNKNOWN)
    base = mean.removesuffix("_mean")
    low, high = content.get(f"{base}_ci95_low"), content.get(f"{base}_ci95_high")
    shown = markdown(content[mean])
    return (
        shown if low is None or high is None else Markdown(f"{shown} ({markdown(low)} to {markdown(high)})")
    )


def settings_text(values: Any) -> str:
    """Return a section of parameters as one line."""
    if not isinstance(values, Mapping):
        return json.dumps(values)
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in values.items())


def agent_rows(spec: MultiAgentSpec) -> list[tuple[str, Any]]:
    """Say what the agents see and do, as rows of a table."""
    names = ", ".join(spec.agent_ids[:_AGENTS_SHOWN]) + (", ..." if spec.n_agents > _AGENTS_SHOWN else "")
    sizes = sorted(set(spec.obs_dims))
    each = (
        ", ".join(map(str, spec.obs_dims[:_AGENTS_SHOWN])) if len(sizes) > 1 else f"{sizes[0]} numbers each"
    )
    bounds = sorted(set(zip(spec.action_low, spec.action_high, strict=True)))
    actions = (
        f"{spec.action_size} discrete actions each"
        if spec.discrete
        else f"{spec.action_size} continuous each, in "
        + ", ".join(f"{low:g} to {high:g}" for low, high in bounds)
    )
    return [
        ("agents", f"{spec.n_agents}: {names}"),
        ("observations", each),
        ("actions", actions),
        ("state", f"{spec.state_size} numbers, for training only"),
    ]


def environment_rows(env: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Say which environment data or a policy are of."""
    if env is None:
        return [("environment", None)]
    return [
        ("environment", env["id"]),
        ("its keywords", settings_text(env["kwargs"]) or "none"),
        ("its version", env.get("version")),
    ]


def source_rows(source: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Say where data come from: as a manifest's `source` has it, nothing added."""
    behaviour = source.get("behaviour")
    about = dict(behaviour) if isinstance(behaviour, Mapping) else {"name": behaviour}
    rows = [("dataset id", source.get("dataset_id") or None)]
    if "path" in source:
        rows += [
            ("folder it was read from", source["path"]),
            ("its SHA-256, by macflow", source.get("sha256")),
        ]
    rows.append(("behaviour", about.pop("name", None)))
    if "url" in about or "sha256" in about:
        rows += [("published at", about.pop("url", None)), ("SHA-256 of that", about.pop("sha256", None))]
    return [*rows, *((plain(name), value) for name, value in about.items())]


def front_matter(content: Mapping[str, Any]) -> Markdown:
    """Return YAML between two lines `---`, as hubs of models and datasets read it."""
    text = yaml.dump(_quoted(content), Dumper=_FrontMatter, sort_keys=False, allow_unicode=True, width=10**9)
    # Not every renderer knows front matter: what could be markup is written as YAML's escapes.
    escaped = _YAML_MARKUP.sub(lambda found: f"\\x{ord(found[0]):02X}", text)
    return Markdown(f"---\n{escaped}---")


class _Quoted(str):
    """Text that YAML is to write in double quotes, where it knows escapes."""


class _FrontMatter(yaml.SafeDumper):
    """Write front matter."""


_FrontMatter.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def _quoted(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _quoted(inner) for name, inner in value.items()}
        case list():
            return [_quoted(inner) for inner in value]
        case str() if _YAML_MARKUP.search(value):
            return _Quoted(value)
        case _:
            return value


@cache
def templates() -> jinja2.Environment:
    """Return the cards' templates, in which every value is escaped unless it is marked as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("macflow.lineage", "."),
        # Of HTML: the result is Markdown, and `finalize` escapes that.
        autoescape=False,  # noqa: S701
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    environment.filters["with_interval"] = with_interval
    environment.filters["settings"] = settings_text
    return environment


def checked_mapping(path: Path, content: Any, *names: str) -> Mapping[str, Any]:
    """Return a manifest that has the named objects; raises `DataError` that names what is missing."""
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object (received {type(content).__name__})")
    for name in names:
        if not isinstance(content.get(name), dict):
            raise DataError(f"{path}: `{name}` must be an object (received {content.get(name)!r})")
    return content
