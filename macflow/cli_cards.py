"""`macflow dataset card` and `macflow policy card`: what is known of data and policies, as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macflow.types import ConfigError, DataError

if TYPE_CHECKING:
    from macflow.lineage.dataset_card import DatasetFacts

Out = Annotated[Path | None, typer.Option(help="File to write, such as README.md; else it is printed.")]


def dataset_card(
    dataset: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="A prepared or Minari dataset, or a listed name.")
    ],
    out: Out = None,
) -> None:
    """Write a dataset's data card: source, agents, sizes, returns, statistics, checks, limits."""
    from macflow.catalogue import all_datasets
    from macflow.lineage import dataset_card as cards

    path = Path(dataset)
    if path.is_dir():
        _check_outside(path, out)
        facts = cards.dataset_facts(path)
    elif dataset in all_datasets():
        facts = _listed(dataset)
    else:
        raise DataError(f"{dataset}: neither a folder nor a name that `macflow dataset list` shows")
    _put(cards.dataset_card(facts), out)


def policy_card(
    path: Annotated[Path, typer.Argument(help="Policy bundle: a folder with policy.json.")],
    baseline: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="What `macflow baseline evaluate --json` wrote, repeatable."),
    ] = [],  # noqa: B006
    out: Out = None,
) -> None:
    """Write a policy's model card: use, making, results with intervals, diagnosis, limits."""
    from macflow.lineage import policy_card as cards

    if not path.is_dir():
        raise DataError(f"{path}: folder not found")
    _check_outside(path, out)
    _put(cards.policy_card(path, baseline), out)


def _check_outside(path: Path, out: Path | None) -> None:
    if out is not None and out.absolute().is_relative_to(path.absolute()):
        raise ConfigError(f"`--out`: must lie outside {path}, whose hash it would change (received {out})")


def _listed(name: str) -> DatasetFacts:
    """Collect what is known of a dataset that is not here."""
    from macflow.catalogue import PublishedDataset, dataset_named, read_facts
    from macflow.envs.registry import ENVIRONMENTS, env_spec, full_kwargs
    from macflow.lineage.cards import agent_rows, environment_rows
    from macflow.lineage.dataset_card import DatasetFacts

    found = dataset_named(name)
    here = "statistics and checks: the dataset is not here; record or import it and name its folder"
    if isinstance(found, PublishedDataset):
        env = found.source.env
        no_env = [f"No environment of macflow made it: {found.source.no_env}."] if env is None else []
        return DatasetFacts(
            title=name,
            subject=f"the published dataset {name}, which is not here",
            env=env,
            agents=(),
            source=[
                *environment_rows(env),
                ("published at", found.source.url),
                ("SHA-256", None),
                ("dataset in it", found.uid),
            ],
            episodes=None,
            transitions=None,
            returns={},
            limits=no_env,
            missing=[here],
        )
    entry = ENVIRONMENTS[found.env_id]
    facts = read_facts().get(name)
    env = {"id": found.env_id, "kwargs": full_kwargs(found.env_id, {}), "version": None}
    missing = [here]
    if found.missing is None:
        env["version"] = entry.version()
        agents = agent_rows(env_spec(found.env_id, {}))
    else:
        agents = []
        missing.append(f"agents: {found.missing}")
    return DatasetFacts(
        title=name,
        subject=f"the dataset {name}, as it is recorded with default keywords",
        env=env,
        agents=agents,
        source=[
            *environment_rows(env),
            ("what it is", entry.description),
            ("behaviour", found.behaviour),
            ("measured by", None if facts is None else facts["command"]),
            ("bytes on disk", None if facts is None else facts["bytes"]),
        ],
        episodes=found.episodes,
        transitions=None if facts is None else facts["transitions"],
        returns={} if facts is None else {"mean": facts["return_mean"]},
        missing=missing,
    )


def _put(text: str, out: Path | None) -> None:
    from macflow.files import write_text

    if out is None:
        print(text, end="")
        return
    write_text(out, text)
    print(out)


policy_app = typer.Typer(no_args_is_help=True, help="Look at policies.")


@policy_app.callback()
def _group() -> None:
    # Keeps `card` a command of its own while it is the only one.
    pass


policy_app.command("card")(policy_card)
