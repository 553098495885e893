"""`macflow lineage`: from any policy back to its data; other modules add commands to `lineage_app`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from macflow.cli_common import AsJson, print_json
from macflow.types import MacflowError

if TYPE_CHECKING:
    from macflow.lineage.project import Project

DIFFERENCES = 1
UNREADABLE = 2
UNCHECKED = 3

ProjectFolder = Annotated[
    Path | None,
    typer.Option("--project", help="The project to look in; that of PATH, or of this folder, if not given."),
]


class _ShowFirst(TyperGroup):
    """A group whose first word may be what to show: `macflow lineage models/policy`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and args[0] in {*self.commands, "--help"}
        parsed: list[str] = super().parse_args(ctx, args if named or not args else ["show", *args])
        return parsed


lineage_app = typer.Typer(
    cls=_ShowFirst,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="From any policy back to its data: show it, prove it, compare two, find what a dataset led to.",
)


class Format(StrEnum):
    """How a lineage is written."""

    tree = "tree"
    json = "json"
    html = "html"
    prov = "prov"
    openlineage = "openlineage"


@lineage_app.command()
def show(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_DIGEST",
            help="A policy or other artifact: its folder, wherever it lies; REVISION:PATH; or a digest.",
        ),
    ],
    output: Annotated[
        Format, typer.Option("--format", help="How to write it: html is a page, prov W3C PROV-JSON.")
    ] = Format.tree,
    project: ProjectFolder = None,
) -> None:
    """Show what an artifact was made from, back to the source. `show` itself may be left out."""
    from macflow.lineage.project import find_subject
    from macflow.lineage.tree import read_tree

    found = chosen_project(project, subject)
    tree = read_tree(found, find_subject(found, subject))
    # What a format needs is imported for that format only.
    if output is Format.prov:
        from macflow.lineage.prov_document import as_prov

        print_json(as_prov(tree))
    elif output is Format.openlineage:
        from macflow.lineage.openlineage_events import as_events

        print_json(as_events(tree))
    elif output is Format.html:
        from macflow.lineage.page import as_page

        print(as_page(tree))
    elif output is Format.json:
        from macflow.lineage.text import as_json

        print_json(as_json(tree))
    else:
        from macflow.lineage.text import as_text

        print(as_text(tree))


def chosen_project(named: Path | None, subject: str | None) -> Project:
    """Return the named project, or the one that the subject lies in, or else this folder's."""
    from macflow.lineage.project import find_project

    if named is not None:
        return find_project(named)
    if subject is not None and Path(subject).exists():
        try:
            return find_project(Path(subject))
        except MacflowError:
            pass
    return find_project(Path("."))


@lineage_app.command()
def verify(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="[PATH_OR_DIGEST]", help="What to verify; the whole project if not given."),
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Fetch from remotes that are no folders too, and hash that.")
    ] = False,
    as_json: AsJson = False,
    project: ProjectFolder = None,
) -> None:
    """Rehash all that led to an artifact, and hold lock, git, cache, bundle and run cards against each other.

    Exit codes: 0 all agrees, 1 something differs, 2 unreadable or no such thing, 3 nothing differs, but
    something recorded lies nowhere here and could not be hashed.
    """
    from macflow.lineage.project import UnknownBytesError, find_subject
    from macflow.lineage.text import findings_json, findings_text
    from macflow.lineage.verify import verify as check

    try:
        found = chosen_project(project, subject)
        findings = check(found, None if subject is None else find_subject(found, subject), network)
    except UnknownBytesError as error:
        _end(error, DIFFERENCES)
    except MacflowError as error:
        _end(error, UNREADABLE)
    if as_json:
        print_json(findings_json(findings))
    else:
        print(findings_text(findings))
    raise typer.Exit(DIFFERENCES if findings.differences else UNCHECKED if findings.unchecked else 0)


def _end(error: MacflowError, code: int) -> NoReturn:
    print(f"macflow: {error}", file=sys.stderr)
    raise typer.Exit(code)


@lineage_app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A policy: path, REVISION:PATH or digest.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    as_json: AsJson = False,
    project: ProjectFolder = None,
) -> None:
    """Say in which data, parameters, code and versions two policies differ, and what came of it."""
    from macflow.lineage.compare import as_text, compare
    from macflow.lineage.project import find_subject
    from macflow.lineage.tree import read_tree

    found = chosen_project(project, first)
    comparison = compare(*(read_tree(found, find_subject(found, one)) for one in (first, second)))
    if as_json:
        print_json(asdict(comparison))
    else:
        print(as_text(comparison))


@lineage_app.command()
def impact(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A dataset: path, REVISION:PATH, digest; or the address or SHA-256 of a download.",
        ),
    ],
    as_json: AsJson = False,
    project: ProjectFolder = None,
) -> None:
    """List every version of a model, in any commit, that came from a version of a dataset."""
    from macflow.lineage.impact import as_text, find_impact

    name, affected = find_impact(chosen_project(project, data), data)
    if as_json:
        print_json({"data": name, "affected": [asdict(one) for one in affected]})
    else:
        print(as_text(name, affected))
