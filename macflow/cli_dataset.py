"""`macflow dataset`: look at, record, import and export multi-agent data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macflow.cli_cards import dataset_card
from macflow.cli_common import AsJson, EnvKwargs, describe_agents, parse_kwargs, print_json
from macflow.types import ConfigError, DataError, MacflowError

if TYPE_CHECKING:
    from macflow.data.importers.imported import Imported
    from macflow.types import MultiAgentSpec

app = typer.Typer(no_args_is_help=True, help="Look at, record, import and export multi-agent data.")

app.command("card")(dataset_card)


class ImportFormat(StrEnum):
    """Formats that datasets are imported from."""

    minari = "minari"
    og_marl = "og-marl"
    omar = "omar"
    npz = "npz"


class ExportFormat(StrEnum):
    """Formats that datasets are exported to."""

    npz = "npz"
    omar = "omar"
    minari = "minari"


class Infos(StrEnum):
    """What to do with the states and masks that a vault stores."""

    check = "check"
    keep = "keep"
    ignore = "ignore"


class ActionKind(StrEnum):
    """Kinds of actions."""

    continuous = "continuous"
    discrete = "discrete"


_OMAR, _OG_MARL = frozenset({ImportFormat.omar}), frozenset({ImportFormat.og_marl})
# Which formats an option of `import` belongs to; it is refused with the others.
OPTION_FORMATS: Mapping[str, frozenset[ImportFormat]] = {
    "--time-limit": _OMAR | _OG_MARL,
    "--action-bounds": _OMAR | _OG_MARL,
    "--episode-length": _OMAR,
    "--uid": _OG_MARL,
    "--sha256": _OG_MARL,
    "--action-kind": _OG_MARL,
    "--n-actions": _OG_MARL,
    "--obs-dims": _OG_MARL,
    "--infos": _OG_MARL,
    "--downloads": _OG_MARL,
}


@app.command("list")
def list_datasets(
    available: Annotated[
        bool, typer.Option("--available", help="Only those that need nothing that is not installed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the names that `dataset` in params.yaml may have."""
    from macflow.cli_listing import describe_datasets, listing_text

    found = describe_datasets(available)
    if as_json:
        print_json(found)
    else:
        print(listing_text(found))


@app.command("show")
def show_dataset(
    path: Annotated[Path, typer.Argument(help="A prepared dataset, or a folder with a Minari dataset.")],
) -> None:
    """Say what a dataset holds: agents, episodes, returns, quality, validation."""
    from macflow.data.show import describe_text

    if not path.is_dir():
        raise DataError(f"{path}: folder not found")
    print(describe_text(path))


@app.command("record")
def record(
    name: Annotated[str, typer.Argument(help="Its name: see `macflow dataset list`.")],
    out: Annotated[Path, typer.Option(help="New folder for the dataset.")],
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes to record; as listed if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Episode i has seed SEED + i.")] = 0,
    env_kwarg: EnvKwargs = [],  # noqa: B006
) -> None:
    """Record a behaviour of an environment as a dataset."""
    from macflow.catalogue import PublishedDataset, dataset_named
    from macflow.stages.record import record_dataset

    dataset = dataset_named(name)
    if isinstance(dataset, PublishedDataset):
        raise ConfigError(
            f"{name} is published, not recorded; get it with: macflow dataset import "
            f"{dataset.source.name} --from og-marl --uid {dataset.uid} --to {out}"
        )
    _check_new(out)
    recorded = record_dataset(out, dataset, parse_kwargs(env_kwarg), episodes, seed)
    mean = sum(episode.team_return for episode in recorded) / len(recorded)
    print(f"{out}: {len(recorded)} episodes of {name}, mean return {mean:.2f}")


@app.command("import")
def import_dataset(
    source: Annotated[
        str,
        typer.Argument(
            help="What to import. minari: a folder, or the id of an installed dataset. npz: a file or a "
            "folder. omar: a seed_S_data folder, or a folder of them. og-marl: a name of the catalogue, "
            "the URL or file of a zip, a .vlt folder, or the folder of one of its UIDs."
        ),
    ],
    source_format: Annotated[ImportFormat, typer.Option("--from", help="Its format.")],
    target: Annotated[Path, typer.Option("--to", help="New folder for the dataset.")],
    env: Annotated[
        str | None,
        typer.Option(help="Environment that the data come from, for evaluation: see `macflow envs`."),
    ] = None,
    env_kwarg: EnvKwargs = [],  # noqa: B006
    time_limit: Annotated[
        int | None,
        typer.Option(min=1, help="omar, og-marl: an episode that ends at step N was cut, not terminated."),
    ] = None,
    episode_length: Annotated[
        int | None, typer.Option(min=1, help="omar: every episode has N steps; found by itself otherwise.")
    ] = None,
    action_bounds: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="omar, og-marl: the environment's, or -1 1, if not given."),
    ] = None,
    uid: Annotated[str | None, typer.Option(help="og-marl: which of a vault's datasets: Good, ...")] = None,
    sha256: Annotated[str | None, typer.Option(help="og-marl: SHA-256 that the zip must have.")] = None,
    action_kind: Annotated[ActionKind | None, typer.Option(help="og-marl: by the data if not given.")] = None,
    n_actions: Annotated[
        int | None, typer.Option(min=1, help="og-marl: number of discrete actions, without stored masks.")
    ] = None,
    obs_dims: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="og-marl: true sizes of padded observations.")
    ] = None,
    infos: Annotated[
        Infos | None,
        typer.Option(
            help="og-marl: stored states and masks that never change within an episode are refused "
            "(check, if not given), kept, or ignored with all others."
        ),
    ] = None,
    downloads: Annotated[
        Path | None, typer.Option(help="og-marl: folder of downloads; data/downloads if not given.")
    ] = None,
) -> None:
    """Convert a dataset for the pipeline to use.

    A dataset that breaks a rule of the validation is refused. Name the new folder as `prepare.raw`
    in params.yaml to train on it.
    """
    from macflow.data.importers.imported import write_imported

    _refuse_foreign(
        source_format,
        {
            "--time-limit": time_limit,
            "--episode-length": episode_length,
            "--action-bounds": action_bounds,
            "--uid": uid,
            "--sha256": sha256,
            "--action-kind": action_kind,
            "--n-actions": n_actions,
            "--obs-dims": obs_dims,
            "--infos": infos,
            "--downloads": downloads,
        },
    )
    if action_bounds is not None and not action_bounds[0] < action_bounds[1]:
        raise ConfigError(f"`--action-bounds`: LOW must be below HIGH (received {action_bounds})")
    _check_new(target)
    kwargs = parse_kwargs(env_kwarg)
    if env is None and kwargs:
        raise ConfigError(f"`--env-kwarg`: needs `--env` (received {', '.join(sorted(kwargs))})")
    chosen = None if env is None else _environment(env, kwargs)
    env_spec = None if chosen is None else chosen.spec
    if source_format is ImportFormat.minari:
        from macflow.data.importers.minari_ids import read_minari_source

        imported = read_minari_source(source, env_spec)
    elif source_format is ImportFormat.npz:
        from macflow.data.importers.npz import read_npz

        imported = read_npz(Path(source), env_spec)
    elif source_format is ImportFormat.omar:
        from macflow.data.importers.omar import read_omar

        imported = read_omar(
            Path(source),
            episode_length=episode_length,
            time_limit=time_limit,
            action_bounds=action_bounds,
            env_spec=env_spec,
        )
    else:
        from macflow.data.importers.og_marl import DOWNLOADS, VaultOptions, read_og_marl

        options = VaultOptions(
            time_limit=time_limit,
            action_kind=action_kind.value if action_kind else None,
            n_actions=n_actions,
            action_bounds=action_bounds,
            obs_dims=_parse_sizes(obs_dims),
            infos=(infos or Infos.check).value,
        )
        imported = read_og_marl(
            source,
            uid,
            target,
            options,
            env_spec=env_spec,
            downloads=downloads or DOWNLOADS,
            sha256=sha256,
        )
    if chosen is not None:
        imported = _with_environment(imported, chosen, replaces=source_format is ImportFormat.og_marl)
    elif source_format is ImportFormat.og_marl and imported.env is not None:
        imported = _with_catalogued_environment(imported, imported.env)
    validation = write_imported(target, source, imported)
    print(
        f"{target}: {imported.rows.n_episodes} episodes of {describe_agents(imported.spec)}, "
        f"{len(imported.rows.train_rows)} transitions; all {len(validation.outcomes)} expectations met"
    )
    for note in imported.notes:
        print(f"  {note}")


@app.command("export")
def export_dataset(
    path: Annotated[Path, typer.Argument(help="A prepared dataset, such as data/prepared.")],
    target_format: Annotated[ExportFormat, typer.Option("--format", help="Format to write.")],
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
) -> None:
    """Write a prepared dataset in a format for other programs.

    Imported again and prepared, it gives the same arrays; what a format cannot hold is refused.
    """
    from macflow.data.export import export_prepared

    _check_new(out)
    exported = export_prepared(path, out, target_format.value)
    print(f"{out}: {exported.episodes} episodes, {exported.transitions} transitions as {target_format.value}")
    for note in exported.notes:
        print(f"  {note}")


@dataclass(frozen=True)
class _Environment:
    """An environment that data come from; `spec` is None where it cannot be made here."""

    record: dict[str, Any]
    spec: MultiAgentSpec | None
    note: str | None


def _environment(env_id: str, kwargs: Mapping[str, Any]) -> _Environment:
    from macflow.envs.registry import env_spec, full_kwargs

    full = full_kwargs(env_id, kwargs)
    # Which version of the environment made the data, nobody says.
    recorded = {"id": env_id, "kwargs": full, "version": None}
    try:
        return _Environment(recorded, env_spec(env_id, full), None)
    except (MacflowError, ImportError, OSError) as error:
        return _Environment(recorded, None, f"not compared with {env_id}, which cannot be made here: {error}")


def _with_environment(imported: Imported, chosen: _Environment, replaces: bool) -> Imported:
    """Check the data against the chosen environment and record it."""
    from macflow.data.importers.imported import match_environment

    named, env = imported.env, chosen.record
    if named is not None and not replaces:
        if (named["id"], named["kwargs"]) != (env["id"], env["kwargs"]):
            raise ConfigError(
                f"`--env`: the data say that they come from {named['id']} {named['kwargs']} "
                f"(received {env['id']} {env['kwargs']})"
            )
        env = dict(named)
    if chosen.spec is not None:
        imported = match_environment(imported, env["id"], chosen.spec)
    notes = imported.notes if chosen.note is None else (*imported.notes, chosen.note)
    return replace(imported, env=env, notes=notes)


def _with_catalogued_environment(imported: Imported, named: Mapping[str, Any]) -> Imported:
    """Check a published dataset against the environment that it is believed to come from."""
    try:
        return _with_environment(imported, _environment(named["id"], named["kwargs"]), replaces=True)
    except ConfigError as error:
        return replace(imported, env=None, notes=(*imported.notes, f"no environment recorded: {error}"))


def _refuse_foreign(chosen: ImportFormat, given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        belongs = OPTION_FORMATS[option]
        if value is not None and chosen not in belongs:
            formats = " and ".join(sorted(belongs))
            raise ConfigError(f"`{option}`: belongs to --from {formats} (received --from {chosen.value})")


def _parse_sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"`--obs-dims`: must be whole numbers > 0 with commas between (received {text!r})")
    return tuple(int(part) for part in parts)


def _check_new(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: already there, and nothing is overwritten; choose a new folder")
