"""Write into dvc.yaml which code each stage depends on, file by file.

    python tools/sync_dvc_deps.py            rewrite the lists
    python tools/sync_dvc_deps.py --check    only say what differs; exit with 1 if anything does

A stage depends on every local module that its file imports, directly or through others, wherever in the
file the import stands, on the `__init__.py` of their packages unless empty, on modules that it starts as
processes (`python -m NAME`, the name as a string), on the templates beside modules that use jinja2, and on
folders of data beside modules that look for them there.
What only the type checker imports is no dependency. A package's `__getattr__` (lazy exports) counts for
those who import a name through it. The whole package as one dependency would rerun everything after any
edit.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PACKAGE = "macflow"
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Compare or rewrite; return the exit status."""
    parser = argparse.ArgumentParser(description="Keep the code dependencies in dvc.yaml true.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 on a difference")
    check = parser.parse_args().check
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 1000
    file = ROOT / "dvc.yaml"
    pipeline = yaml.load(file.read_text(encoding="utf-8"))
    differs = False
    for name, stage in pipeline["stages"].items():
        data, code = split_deps(stage["deps"])
        wanted = code_deps(ROOT, stage_module(stage["cmd"]))
        for sign, paths in (("+", set(wanted) - set(code)), ("-", set(code) - set(wanted))):
            for path in sorted(paths):
                print(f"{name}: {sign} {path}")
                differs = True
        stage["deps"][:] = [*data, *wanted]
    if differs and not check:
        with file.open("w", encoding="utf-8") as stream:
            yaml.dump(pipeline, stream)
    return int(differs and check)


def stage_module(cmd: str) -> str:
    """Return the module that a stage's command runs: `python -m MODULE ...`."""
    words = shlex.split(cmd)
    if words[:3] != ["exec", "python", "-m"]:
        raise ValueError(f"a stage's command must begin with `exec python -m MODULE` (received {cmd!r})")
    return words[3]


def split_deps(deps: list[Any]) -> tuple[list[str], list[str]]:
    """Return a stage's dependencies as (data, code)."""
    code = [str(dep) for dep in deps if str(dep).startswith(f"{PACKAGE}/")]
    return [str(dep) for dep in deps if str(dep) not in code], code


def code_deps(root: Path, module: str) -> list[str]:
    """Return the files, relative to `root`, that running `module` can execute or render."""
    found: set[Path] = set()
    pending = [module]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if (path := _file(root, name)) is None:
            if name == module:
                raise FileNotFoundError(f"no module {name} under {root}")
            continue
        found.add(path)
        if _uses_templates(path):
            found.update(path.parent.glob("*.j2"))
        found.update(_data_folders(path))
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
        parents = name.split(".")
        pending += [".".join(parents[:i]) for i in range(1, len(parents))]
        pending += _imports(root, path, name)
    # DVC warns of every empty file at every turn, and an empty `__init__.py` has no effect to depend on.
    return sorted(path.relative_to(root).as_posix() for path in found if path.stat().st_size)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _uses_templates(path: Path) -> bool:
    nodes = ast.walk(_tree(path))
    return any(isinstance(n, ast.Import) and any(a.name == "jinja2" for a in n.names) for n in nodes)


def _data_folders(path: Path) -> list[Path]:
    """Return the folders of data beside a file that it reads: those it names, and finds by `__file__`."""
    nodes = list(ast.walk(_tree(path)))
    if not any(isinstance(node, ast.Name) and node.id == "__file__" for node in nodes):
        return []
    named = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    folders = (folder for folder in path.parent.iterdir() if folder.is_dir() and folder.name in named)
    return [folder for folder in folders if not any(folder.glob("*.py"))]


def _imports(root: Path, path: Path, module: str) -> list[str]:
    """Return the local modules that the file names in imports or as strings."""
    return _named(root, _executed(_tree(path)), module, path.name == "__init__.py")


def _named(root: Path, nodes: Iterable[ast.AST], module: str, is_package: bool) -> list[str]:
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if _local(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, module, is_package)
            if not _local(source):
                continue
            names.append(source)
            for alias in node.names:
                if _file(root, inner := f"{source}.{alias.name}"):
                    names.append(inner)
                elif source != module and (file := _file(root, source)) and file.name == "__init__.py":
                    names += _lazy_exports(root, file, source)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value != PACKAGE and _local(node.value) and _file(root, node.value):
                names.append(node.value)
    return names


def _lazy_exports(root: Path, package: Path, name: str) -> list[str]:
    """Return what a package's `__getattr__` imports, by statement or by name."""
    lazy = [node for node in _tree(package).body if _is_getattr(node)]
    return [module for function in lazy for module in _named(root, ast.walk(function), name, is_package=True)]


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what can run: neither `if TYPE_CHECKING:` nor a module's `__getattr__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Module) and _is_getattr(child):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)


def _is_getattr(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _source(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def _local(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


if __name__ == "__main__":
    sys.exit(main())
