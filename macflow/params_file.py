"""Change params.yaml and leave its comments as they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from macflow.config import Params, check_params
from macflow.files import write_text
from macflow.types import ConfigError

# Values of these are replaced as a whole: keywords of one environment mean nothing to another.
WHOLE = ("kwargs",)


def read_settings(path: Path) -> Any:
    """Read settings such as those of params.yaml, or of an example.

    Raises:
        ConfigError: where the file is missing, no YAML, or no sections.
    """
    return _read(_yaml(), path)


def read_plain(path: Path) -> Any:
    """Read settings as plain values, without the comments of their file; raises as `read_settings` does."""
    return _read(YAML(typ="safe"), path)


def change_params(
    params: Path, wanted: Mapping[str, Any], where: str, check: Callable[[Params], object] | None = None
) -> list[str]:
    """Change `params` and return a line for each setting that is another one now.

    Args:
        wanted: sections with the settings to change. where: they come from, for messages.
        check: is given all that the file will say, and may raise too.

    Raises:
        ConfigError: where the file is missing or no YAML, or a setting is unknown or breaks its rule;
            `params` is as it was then.
    """
    yaml = _yaml()
    present = _read(yaml, params)
    changed = _merge(present, wanted, where)
    checked = check_params(params, YAML(typ="safe").load(_text(yaml, present)))
    if check is not None:
        check(checked)
    write_text(params, _text(yaml, present))
    return changed


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 1000
    yaml.representer.add_representer(type(None), _null)
    return yaml


def _read(yaml: YAML, path: Path) -> Any:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: must map names to values (received {raw!r})")
    return raw


def _text(yaml: YAML, content: Any) -> str:
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _merge(present: Any, wanted: Mapping[str, Any], where: str, *names: str) -> list[str]:
    changed = []
    for name, value in wanted.items():
        path = ".".join([*names, name])
        if name not in present:
            raise ConfigError(f"{where}: `{path}`: there is no such parameter (received {value!r})")
        if isinstance(value, Mapping) and isinstance(present[name], Mapping) and name not in WHOLE:
            changed += _merge(present[name], value, where, *names, name)
        elif present[name] != value:
            changed.append(f"{path}: {_plain(present[name])} -> {_plain(value)}")
            present[name] = _in_one_line(value)
    return changed


def _plain(value: Any) -> Any:
    """Return the value without the comments that belong to it in its file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _in_one_line(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, dict):
        plain = CommentedMap(plain)
    elif isinstance(plain, list):
        plain = CommentedSeq(plain)
    else:
        return plain
    plain.fa.set_flow_style()
    return plain


def _null(representer: Any, value: None) -> Any:
    """Write what is empty as `null`, which a reader sees."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
