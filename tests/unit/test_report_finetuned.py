"""The page about fine-tuning: its words, what it warns of, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from report_workspace import RANDOM, add_finetuning, edit_json, make_workspace

from macflow.report.finetuned import Content, attention, headline, read_content, render_page
from macflow.types import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_workspace(tmp_path)
    add_finetuning(tmp_path, changed=False)
    return tmp_path


def read(root: Path) -> Content:
    return read_content(root / "params.yaml", root / "metrics", root / "plots")


def sentence(content: Content) -> str:
    return "".join(text for text, _ in headline(content.evaluation))


def test_the_headline_compares_with_the_offline_policies(root: Path) -> None:
    assert sentence(read(root)) == (
        "After fine-tuning the policies reach a normalised return of 87.3 (95% interval 84.0 to 90.7), "
        "17.5 above the offline policies."
    )
    edit_json(root / "metrics/evaluate_finetuned.json", reference=None)
    assert "reach a return of −24.7" in sentence(read(root))


def test_intervals_that_meet_tell_nothing_apart(root: Path) -> None:
    file = root / "metrics/evaluate_finetuned.json"
    found = json.loads(file.read_text())
    edit_json(file, last=found["offline"] | {"return_mean": found["offline"]["return_mean"] + 0.5})
    assert sentence(read(root)).endswith("which the intervals do not tell apart.")


def test_a_fall_below_the_offline_policies_is_told(root: Path) -> None:
    assert attention(read(root)) == ()
    file = root / "plots/finetune/evaluations.csv"
    table = pl.read_csv(file)
    first = table.row(0, named=True)
    floor = first["return_ci95_low"] - 0.1 * (first["return_mean"] - RANDOM)
    for fallen, told in ((floor + 0.01, 0), (floor - 0.01, 1)):
        column = table["return_mean"].to_list()
        column[2] = fallen
        table.with_columns(pl.Series("return_mean", column)).write_csv(file)
        assert len(attention(read(root))) == told
    assert "the first after 10\u202f000 environment steps" in attention(read(root))[0]
    # After a change of the environment a fall is what is to be expected.
    changed = [0, 0, *[1] * (len(column) - 2)]
    table.with_columns(pl.Series("return_mean", column), pl.Series("changed", changed)).write_csv(file)
    assert attention(read(root)) == ()


def test_an_end_below_what_is_kept_is_told(root: Path) -> None:
    file = root / "metrics/evaluate_finetuned.json"
    edit_json(file, last=json.loads(file.read_text())["offline"])
    assert attention(read(root)) == (
        "The policies after the last step are clearly below what the guard kept",
    )


def test_text_from_inputs_is_never_markup(root: Path) -> None:
    edit_json(root / "metrics/evaluate_finetuned.json", env="<script>alert(1)</script>")
    page = render_page(read(root), "<b>title</b>")
    assert "<script>alert(1)" not in page
    assert "<b>title" not in page


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("metrics/finetune.json", None, "file not found"),
        ("metrics/evaluate_finetuned.json", '{"env": 3}', "`env`"),
        ("plots/finetune/evaluations.csv", "env_steps\n0\n", "column `changed` is missing"),
        ("plots/finetune/curve.csv", None, "file not found"),
        ("plots/evaluate_finetuned/episode.gif", "PNG", "not a GIF"),
    ],
)
def test_bad_input_is_named(root: Path, file: str, content: str | None, part: str) -> None:
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_text(content)
    with pytest.raises(DataError, match=f"{Path(file).name}: .*{part}"):
        read(root)
