"""The page about fine-tuning: what it reads, checked and typed, its charts and its words."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from macflow.report.charts import CRITIC, INK, MUTED, POLICY, Chart, Series, curve, spec_of
from macflow.report.content import (
    Facts,
    Returns,
    Row,
    read_facts,
    read_gif,
    read_params,
    read_table,
)
from macflow.report.numbers import fixed, number
from macflow.report.render import chart_library, page_templates

INTERVAL = ("return_mean", "return_ci95_low", "return_ci95_high")
# How far an evaluation may fall below the offline policies' interval, as a share of their lead over random.
COLLAPSE = 0.1


class Scale(Facts):
    random: float
    expert: float

    def normalised(self, value: float) -> float:
        """Place a return on the scale where random is 0 and expert 100."""
        return 100.0 * (value - self.random) / (self.expert - self.random)


class Evaluation(Facts):
    env: str
    env_kwargs: dict[str, Any]
    episodes: int
    seed: int
    reference: Scale | None
    offline: Returns
    last: Returns
    kept: Returns


class ChangeFacts(Facts):
    env_steps: int
    return_before: float
    return_after: float
    regained_after_steps: int | None


class Tuning(Facts):
    env_steps: int
    updates: int
    kept_env_steps: int
    change: ChangeFacts | None = None


@dataclass(frozen=True)
class Content:
    """All facts of one fine-tuning. Tables are rows in file order."""

    params: Mapping[str, Any]
    tuning: Tuning
    evaluation: Evaluation
    judgements: Sequence[Row]
    curve: Sequence[Row]
    episode_gif: bytes


def read_content(params: Path, metrics: Path, plots: Path) -> Content:
    """Read and check every input of the page; raises as `content.read_content` does."""
    return Content(
        params=read_params(params)[1]["finetune"],
        tuning=read_facts(metrics / "finetune.json", Tuning),
        evaluation=read_facts(metrics / "evaluate_finetuned.json", Evaluation),
        judgements=read_table(
            plots / "finetune/evaluations.csv", ("env_steps", "changed", *INTERVAL, "kept_return")
        ),
        curve=read_table(plots / "finetune/curve.csv", ("step", "td_loss", "q_mean", "distill_loss")),
        episode_gif=read_gif(plots / "evaluate_finetuned/episode.gif"),
    )


def render_page(content: Content, title: str) -> str:
    """Return the page. Equal content gives equal text: nothing in it depends on time or place."""
    evaluation = content.evaluation
    charts = {chart.key: chart for chart in _charts(content)}
    return (
        page_templates()
        .get_template("finetuned.html.j2")
        .render(
            title=title,
            tuning=content.tuning,
            evaluation=evaluation,
            params=content.params,
            normalised=evaluation.reference is not None,
            interval=lambda returns: _interval(evaluation, returns),
            headline=headline(evaluation),
            attention=attention(content),
            charts=charts,
            specs={key: chart.spec for key, chart in charts.items()},
            gif=base64.b64encode(content.episode_gif).decode("ascii"),
            chart_library=chart_library(),
        )
    )


def headline(evaluation: Evaluation) -> tuple[tuple[str, bool], ...]:
    """Say the result in one sentence: parts in order, and whether each is to be stressed."""
    offline, offline_low, offline_high = _interval(evaluation, evaluation.offline)
    last, low, high = _interval(evaluation, evaluation.last)
    apart = low > offline_high or high < offline_low
    scale = "normalised " if evaluation.reference is not None else ""
    change = f"{fixed(abs(last - offline))} {'above' if last > offline else 'below'}"
    return (
        (f"After fine-tuning the policies reach a {scale}return of ", False),
        (fixed(last), True),
        (f" (95% interval {fixed(low)} to {fixed(high)}), ", False),
        (change, True),
        (f" the offline policies{'' if apart else ', which the intervals do not tell apart'}.", False),
    )


def attention(content: Content) -> tuple[str, ...]:
    """List what a reader must not miss: a fall below the offline policies, or an end below what is kept."""
    found = []
    evaluation, rows = content.evaluation, content.judgements
    first = rows[0]
    floor = first["return_ci95_low"]
    if evaluation.reference is not None:
        floor -= COLLAPSE * (first["return_mean"] - evaluation.reference.random)
    fallen = [row for row in rows[1:] if not row["changed"] and row["return_mean"] < floor]
    if fallen:
        found.append(
            f"{len(fallen)} evaluations fell clearly below the offline policies, the first after "
            f"{number(fallen[0]['env_steps'])} environment steps"
        )
    if evaluation.last.return_ci95_high < evaluation.kept.return_ci95_low:
        found.append("The policies after the last step are clearly below what the guard kept")
    return tuple(found)


def _interval(evaluation: Evaluation, returns: Returns) -> tuple[float, float, float]:
    """Return mean, low and high: normalised where the environment has a reference, else raw."""
    raw = (returns.return_mean, returns.return_ci95_low, returns.return_ci95_high)
    scale = evaluation.reference
    if scale is None:
        return raw
    mean, low, high = (scale.normalised(value) for value in raw)
    return mean, low, high


def _charts(content: Content) -> list[Chart]:
    return [
        returns_curve(content),
        curve("finetune_td", "Critics: TD loss", content.curve, (Series("td_loss", "TD loss", CRITIC),)),
        curve(
            "finetune_values",
            "Critics: value of the policies",
            content.curve,
            (Series("q_mean", "Q", CRITIC),),
        ),
        curve(
            "finetune_distance",
            "Policies: distance to the flow",
            content.curve,
            (Series("distill_loss", "Distillation loss", POLICY),),
        ),
    ]


def returns_curve(content: Content) -> Chart:
    """Draw mean return and its interval against environment steps, with what they began from as a rule."""
    scale = content.evaluation.reference

    def placed(value: float) -> float:
        return value if scale is None else scale.normalised(value)

    rows = [
        {
            "env_steps": row["env_steps"],
            "part": "after the change" if row["changed"] else "before",
            **{name: placed(row[name]) for name in INTERVAL},
            "kept": placed(row["kept_return"]),
        }
        for row in content.judgements
    ]
    for row in rows:
        row["label"] = fixed(row["return_mean"])
        row["interval"] = f"{fixed(row['return_ci95_low'])} to {fixed(row['return_ci95_high'])}"
    title = "Return" if scale is None else "Normalised return"
    y = alt.Y("return_mean:Q", title=title, scale=alt.Scale(zero=False, nice=True))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "env_steps:Q", title="Environment steps", axis=alt.Axis(format=",d", tickCount=6, grid=False)
        ),
        detail="part:N",
    )
    marks: list[Any] = [
        base.mark_area(color=POLICY, opacity=0.18).encode(
            y=alt.Y("return_ci95_low:Q", title=title), y2="return_ci95_high:Q"
        ),
        base.mark_line(color=MUTED, strokeDash=[5, 4], strokeWidth=1.5, interpolate="step-after").encode(
            y="kept:Q"
        ),
        base.mark_line(color=POLICY, strokeWidth=2).encode(y=y),
        base.mark_point(color=POLICY, filled=True, size=55, opacity=1).encode(
            y=y,
            tooltip=[
                alt.Tooltip("env_steps:Q", title="Environment steps", format=","),
                alt.Tooltip("label:N", title="Mean"),
                alt.Tooltip("interval:N", title="95% interval"),
            ],
        ),
        alt.Chart(alt.InlineData(values=[{"offline": rows[0]["return_mean"]}]))
        .mark_rule(color=INK, strokeDash=[2, 3])
        .encode(y="offline:Q"),
    ]
    changed = [row for row in rows if row["part"] != "before"]
    if changed:
        marks.append(
            alt.Chart(alt.InlineData(values=[{"env_steps": changed[0]["env_steps"]}]))
            .mark_rule(color=INK)
            .encode(x="env_steps:Q")
        )
    chart = alt.layer(*marks).properties(height=300, width="container")
    caption = (
        f"{title} {fixed(rows[0]['return_mean'])} offline (dotted), {rows[-1]['label']} at the end "
        f"({rows[-1]['interval']}); dashed: what the guard keeps."
    )
    if changed:
        caption += " The upright line is where the environment became another."
    return Chart("finetune_returns", "Return against environment steps", caption, spec_of(chart))
