"""The page about a tuning study: its charts and its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from macflow.report.charts import MUTED, POLICY, Chart, spec_of
from macflow.report.numbers import number
from macflow.report.render import chart_library, page_templates

COMPLETE = "complete"
# A numeric parameter whose largest value is this multiple of the smallest is drawn on a logarithmic axis.
LOG_RATIO = 30.0


@dataclass(frozen=True)
class TunedContent:
    """All facts of one study. A trial: number, state, params, values (None where not judged), runs."""

    trials: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any]
    # Names of the objectives, and of the parameters searched.
    objectives: Sequence[str]
    searched: Sequence[str]
    # Share of the first objective's variation that each parameter explains; empty with one trial.
    importances: Mapping[str, float]
    episodes: int
    episode_seed: int


def render_page(content: TunedContent, title: str) -> str:
    """Return the page. Equal content gives equal text: nothing in it depends on time or place."""
    charts = {chart.key: chart for chart in _charts(content)}
    states = [trial["state"] for trial in content.trials]
    return (
        page_templates()
        .get_template("tuned.html.j2")
        .render(
            title=title,
            trials=content.trials,
            pruned=states.count("pruned"),
            failed=states.count("fail"),
            best=content.best,
            names=content.objectives,
            searched=content.searched,
            episodes=content.episodes,
            episode_seed=content.episode_seed,
            charts=charts,
            specs={key: chart.spec for key, chart in charts.items()},
            chart_library=chart_library(),
        )
    )


def _charts(content: TunedContent) -> list[Chart]:
    judged = [trial for trial in content.trials if trial["state"] == COMPLETE]
    slices = [_slice(content, judged, number, name) for number, name in enumerate(content.searched)]
    return [_history(content, judged), *slices, _importances(content)]


def _history(content: TunedContent, judged: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the first objective of each trial, and of the best one up to it."""
    name = content.objectives[0]
    best = max if name == "return" else min
    values = [trial["values"][0] for trial in judged]
    rows = [
        {"trial": trial["number"], "value": value, "best": best(values[: place + 1])}
        for place, (trial, value) in enumerate(zip(judged, values, strict=True))
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("trial:Q", title="Trial", axis=alt.Axis(tickMinStep=1, grid=False))
    )
    scale = alt.Scale(zero=False, nice=True)
    points = base.mark_point(color=POLICY, filled=True, size=60, opacity=0.9).encode(
        y=alt.Y("value:Q", title=name, scale=scale),
        tooltip=[alt.Tooltip("trial:Q"), alt.Tooltip("value:Q", title=name, format=".5~g")],
    )
    line = base.mark_line(color=MUTED, interpolate="step-after").encode(y=alt.Y("best:Q", scale=scale))
    chart = (line + points).properties(height=240, width="container")
    last = number(rows[-1]["best"], 4)
    caption = f"{len(judged)} trials judged to their end; the line is the best so far, {last} at last."
    return Chart("history", "Trials in their order", caption, spec_of(chart))


def _slice(content: TunedContent, judged: Sequence[Mapping[str, Any]], place: int, name: str) -> Chart:
    """Draw the first objective against one parameter."""
    rows = [{"at": trial["params"][name], "value": trial["values"][0]} for trial in judged]
    values = [row["at"] for row in rows]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    wide = numeric and min(values) > 0 and max(values) / min(values) > LOG_RATIO
    scale = alt.Scale(type="log", nice=False, padding=12) if wide else alt.Scale(zero=False, padding=12)
    x = (
        alt.X("at:Q", title=name, scale=scale, axis=alt.Axis(format="~g"))
        if numeric
        else alt.X("at:N", title=name)
    )
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(color=POLICY, filled=True, size=60, opacity=0.8)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=content.objectives[0], scale=alt.Scale(zero=False)),
            tooltip=[
                alt.Tooltip("at:Q" if numeric else "at:N", title=name),
                alt.Tooltip("value:Q", format=".5~g"),
            ],
        )
        .properties(height=220, width="container")
    )
    best = content.best["params"][name]
    caption = f"Best at {best if not isinstance(best, float) else number(best)}." + (
        " Logarithmic axis." if wide else ""
    )
    return Chart(f"slice_{place}", f"By {name}", caption, spec_of(chart))


def _importances(content: TunedContent) -> Chart:
    """Draw how much of the first objective's variation each parameter explains."""
    rows = [{"name": name, "share": share} for name, share in content.importances.items()]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(color=POLICY, height=14, cornerRadiusEnd=3)
        .encode(
            x=alt.X("share:Q", title="Importance", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("name:N", sort=None, axis=alt.Axis(title=None, ticks=False, domain=False)),
        )
        .properties(height=max(40, 34 * len(rows)), width="container")
    )
    told = ", ".join(f"{name} {number(share)}" for name, share in content.importances.items())
    caption = f"{told} (PED-ANOVA)." if told else "Too few trials to tell."
    return Chart("importances", "Which parameter matters", caption, spec_of(chart))
