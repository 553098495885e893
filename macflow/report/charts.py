"""Vega-Lite specifications of the report's charts.

Colours are CSS variables of the page (`var(--policy)`), so one specification serves light and dark.
Every chart carries a sentence that says what it shows: the caption, and what a screen reader reads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from macflow.report.content import Content, Distribution, Row, Spec, dataset_mean, interval
from macflow.report.numbers import fixed, number, percent

POLICY, FLOW, BEHAVIOUR = "var(--policy)", "var(--flow)", "var(--behaviour)"
DATASET, RANDOM, CRITIC = "var(--dataset)", "var(--random)", "var(--critic)"
INK, MUTED = "var(--ink)", "var(--muted)"

# From this ratio of largest to smallest on, a positive curve is drawn on a logarithmic axis.
LOG_RATIO = 30.0


@dataclass(frozen=True)
class Chart:
    """A figure: `spec` is Vega-Lite, its width that of the page's column."""

    key: str
    title: str
    caption: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line of a curve: the table's column, how it is called and drawn."""

    column: str
    label: str
    colour: str
    dashed: bool = False


def build_charts(content: Content) -> dict[str, Chart]:
    """Return all charts of the report by key."""
    charts = [
        returns_chart(content),
        histogram(
            "dataset_returns",
            "Returns of the dataset's episodes",
            "Return",
            content.return_bins,
            content.description.returns,
        ),
        action_coverage(content.action_bins),
        curve("flow_loss", "Joint flow: matching loss", content.flow_curve, (Series("loss", "Loss", FLOW),)),
        curve(
            "critic_loss", "Critic: TD loss", content.critic_curve, (Series("td_loss", "TD loss", CRITIC),)
        ),
        curve(
            "critic_values",
            "Critic: value and target",
            content.critic_curve,
            (Series("q_mean", "Q", CRITIC), Series("target_mean", "Target", MUTED, dashed=True)),
        ),
        curve(
            "distill_loss",
            "One-step policies: distillation loss",
            content.distill_curve,
            (Series("distill_loss", "Distillation loss", POLICY),),
        ),
        curve(
            "distill_values",
            "One-step policies: value",
            content.bound_curve,
            (
                Series("q_policy", "Q of the policies", POLICY),
                Series("q_flow", "Q of the joint flow", FLOW, dashed=True),
            ),
        ),
        curve(
            "w2",
            "Prop. 4.2: distance to the flow",
            content.bound_curve,
            (Series("w2", "W2", POLICY), Series("coupling_bound", "Coupling bound", MUTED, dashed=True)),
        ),
        curve(
            "value_gap",
            "Prop. 4.3: value gap to the flow",
            content.bound_curve,
            (
                Series("value_gap", "Value gap", POLICY),
                Series("value_gap_bound", "Bound", MUTED, dashed=True),
            ),
        ),
        mutual_information(content),
        *joint_actions(content.joint_actions, content.dataset.spec),
    ]
    lengths = content.description.length
    if lengths.min < lengths.max:
        charts.append(
            histogram(
                "dataset_lengths", "Lengths of the dataset's episodes", "Steps", content.length_bins, lengths
            )
        )
    return {chart.key: chart for chart in charts}


def returns_chart(content: Content) -> Chart:
    """Draw every actor's mean return as a dot on its 95% interval; the dataset's mean has none."""
    evaluation = content.evaluation
    normalised = evaluation.reference is not None
    measured = [
        ("One-step policy", evaluation.policy, POLICY),
        ("Joint flow", evaluation.flow, FLOW),
        ("Behaviour", evaluation.behaviour, BEHAVIOUR),
        ("Random", evaluation.random, RANDOM),
    ]
    rows: list[dict[str, Any]] = []
    for name, returns, colour in measured:
        if returns is not None:
            mean, low, high = interval(evaluation, returns)
            rows.append({"who": name, "mean": mean, "low": low, "high": high, "colour": colour})
    rows.insert(len(rows) - 1, {"who": "Dataset", "mean": dataset_mean(evaluation), "colour": DATASET})
    for row in rows:
        row["label"] = fixed(row["mean"])
        row["interval"] = f"{fixed(row['low'])} to {fixed(row['high'])}" if "low" in row else "all episodes"
    unit = "Normalised return" if normalised else "Return"
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y(
            "who:N",
            sort=[row["who"] for row in rows],
            axis=alt.Axis(title=None, ticks=False, domain=False, labelFontSize=13, labelColor=INK, grid=True),
        ),
        color=alt.Color("colour:N", scale=None),
        tooltip=[
            alt.Tooltip("who:N", title="Actor"),
            alt.Tooltip("label:N", title="Mean"),
            alt.Tooltip("interval:N", title="95% interval"),
        ],
    )
    x = alt.X(
        "mean:Q",
        title=unit,
        scale=alt.Scale(zero=False, nice=True, padding=24),
        axis=alt.Axis(tickCount=6),
    )
    layers = [
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3, strokeCap="round", opacity=0.55)
        .encode(x=alt.X("low:Q", title=unit), x2="high:Q"),
        base.transform_filter("isValid(datum.low)").mark_point(filled=True, size=110, opacity=1).encode(x=x),
        base.transform_filter("!isValid(datum.low)")
        .mark_point(shape="diamond", size=110, strokeWidth=2.2, fill="var(--surface)", opacity=1)
        .encode(x=x),
        base.mark_text(dy=-14, fontSize=12, fontWeight=600).encode(x=x, text="label:N"),
    ]
    best = max(rows, key=lambda row: float(row["mean"]))
    caption = (
        f"Mean and 95% bootstrap interval over {evaluation.episodes} episodes with the same seeds. "
        f"Highest: {best['who'].lower()}, {best['label']}."
    )
    chart = alt.layer(*layers).properties(height=56 * len(rows), width="container")
    return Chart("returns", "Returns", caption, spec_of(chart))


def histogram(key: str, title: str, unit: str, rows: Sequence[Row], summary: Distribution) -> Chart:
    """Draw counted bins with the mean as a line."""
    bars = (
        alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
        .mark_rect(color=DATASET, stroke="var(--surface)", strokeWidth=0.6, opacity=0.85)
        .encode(
            x=alt.X(
                "bin_left:Q", title=unit, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(grid=False)
            ),
            x2="bin_right:Q",
            y=alt.Y("count:Q", title="Episodes", scale=alt.Scale(nice=True)),
            y2=alt.datum(0),
            tooltip=[
                alt.Tooltip("bin_left:Q", title="From", format=".4~g"),
                alt.Tooltip("bin_right:Q", title="To", format=".4~g"),
                alt.Tooltip("count:Q", title="Episodes", format=","),
            ],
        )
    )
    mean = (
        alt.Chart(alt.InlineData(values=[{"mean": summary.mean}]))
        .mark_rule(color=INK, strokeDash=[4, 3], strokeWidth=1.4)
        .encode(x="mean:Q", tooltip=[alt.Tooltip("mean:Q", title="Mean", format=".4~g")])
    )
    caption = (
        f"Mean {number(summary.mean)} (dashed), standard deviation {number(summary.std)}; "
        f"half of the episodes lie between {number(summary.q25)} and {number(summary.q75)}."
    )
    return Chart(key, title, caption, spec_of((bars + mean).properties(height=190, width="container")))


def action_coverage(rows: Sequence[Row]) -> Chart:
    """Draw, per agent and action dimension, how its actions spread over the bins."""
    groups: dict[str, list[Row]] = {}
    several = len({row["dim"] for row in rows}) > 1
    for row in rows:
        name = f"{row['agent']}, dim {int(row['dim'])}" if several else str(row["agent"])
        groups.setdefault(name, []).append(row)
    values = []
    for name, bins in groups.items():
        total = sum(float(row["count"]) for row in bins)
        for row in bins:
            share = float(row["count"]) / total if total else 0.0
            values.append({"who": name, "left": row["bin_left"], "right": row["bin_right"], "share": share})
    filled = sum(value["share"] > 0 for value in values) / len(values)
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_rect(color=DATASET, stroke="var(--surface)", strokeWidth=0.6)
        .encode(
            x=alt.X(
                "left:Q", title="Action", scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(grid=False)
            ),
            x2="right:Q",
            y=alt.Y("who:N", sort=list(groups), axis=alt.Axis(title=None, ticks=False, domain=False)),
            opacity=alt.Opacity("share:Q", scale=alt.Scale(range=[0.06, 1]), legend=None),
            tooltip=[
                alt.Tooltip("who:N", title="Agent"),
                alt.Tooltip("left:Q", title="From", format=".3~g"),
                alt.Tooltip("right:Q", title="To", format=".3~g"),
                alt.Tooltip("share:Q", title="Share of actions", format=".1%"),
            ],
        )
        .properties(height=max(10, min(24, 480 // len(groups))) * len(groups), width="container")
    )
    caption = (
        f"The stronger the colour, the more often taken. {percent(filled, 0)} of the bins were ever used."
    )
    return Chart("actions", "Which actions the data holds", caption, spec_of(chart))


def curve(key: str, title: str, rows: Sequence[Row], series: Sequence[Series]) -> Chart:
    """Draw columns against the training step, with one tooltip for all lines at the pointer's step."""
    values = [
        {"step": row["step"], "series": one.label, "value": row[one.column]}
        for one in series
        for row in rows
        if row[one.column] is not None
    ]
    numbers = [float(value["value"]) for value in values]
    # A curve without one finite value is an empty frame, which says so in its caption.
    logarithmic = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > LOG_RATIO
    if logarithmic:
        low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
        scale = alt.Scale(type="log", domain=[10.0**low, 10.0**high])
        axis = alt.Axis(values=[10.0**k for k in range(low, high + 1)], format="~g")
    else:
        scale, axis = alt.Scale(zero=False, nice=True), alt.Axis(tickCount=5, format="~g")
    labels = [one.label for one in series]
    base = alt.Chart(alt.InlineData(values=values))
    x = alt.X("step:Q", title="Training step", axis=alt.Axis(format=",d", tickCount=5, grid=False))
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolSize=160) if series[1:] else None
    lines = base.mark_line(strokeWidth=2, interpolate="linear").encode(
        x=x,
        y=alt.Y("value:Q", title=None, scale=scale, axis=axis),
        color=alt.Color(
            "series:N", scale=alt.Scale(domain=labels, range=[one.colour for one in series]), legend=legend
        ),
        strokeDash=alt.StrokeDash(
            "series:N",
            scale=alt.Scale(domain=labels, range=[[5, 4] if one.dashed else [1, 0] for one in series]),
            legend=legend,
        ),
    )
    pointer = alt.selection_point(
        name="pointer", nearest=True, on="pointerover", clear="pointerout", fields=["step"], empty=False
    )
    guide = (
        base.transform_pivot("series", value="value", groupby=["step"])
        .mark_rule(color=MUTED, strokeWidth=1)
        .encode(
            x=x,
            opacity=alt.condition(pointer, alt.value(0.7), alt.value(0)),
            tooltip=[
                alt.Tooltip("step:Q", title="Step", format=","),
                *(alt.Tooltip(f"{label}:Q", format=".4~g") for label in labels),
            ],
        )
        .add_params(pointer)
    )
    chart = alt.layer(lines, guide).properties(height=190, width="container")
    changes = [
        f"{one.label} {number(found[0])} at first, {number(found[-1])} at the end"
        for one in series
        if (found := [row[one.column] for row in rows if row[one.column] is not None])
    ]
    caption = "; ".join(changes) + "." if changes else "No finite value was recorded."
    if logarithmic:
        caption += " Logarithmic axis."
    return Chart(key, title, caption, spec_of(chart))


def mutual_information(content: Content) -> Chart:
    """Draw the mutual information between the agents' actions in data, flow and policy."""
    found = content.diagnosis.mutual_information
    measured = [
        ("Dataset", found.dataset, DATASET),
        ("Joint flow", found.flow, FLOW),
        ("One-step policy", found.policy, POLICY),
    ]
    rows = [{"who": w, "nats": nats, "label": number(nats), "colour": colour} for w, nats, colour in measured]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("nats:Q", title="Mutual information (nats)", axis=alt.Axis(tickCount=5)),
        y=alt.Y(
            "who:N",
            sort=[who for who, _, _ in measured],
            axis=alt.Axis(title=None, ticks=False, domain=False, labelFontSize=13, labelColor=INK),
        ),
        tooltip=[alt.Tooltip("who:N", title="Of"), alt.Tooltip("label:N", title="Nats")],
    )
    bars = base.mark_bar(height=14, cornerRadiusEnd=3).encode(color=alt.Color("colour:N", scale=None))
    labels = base.mark_text(align="left", dx=6, fontSize=12, fontWeight=600, color=INK).encode(text="label:N")
    chart = (bars + labels).properties(height=34 * len(rows), width="container")
    caption = (
        f"Dataset {number(found.dataset)}, joint flow {number(found.flow)}, one-step policies "
        f"{number(found.policy)} nats. Zero means that every agent acts as if it were alone."
    )
    return Chart(
        "mutual_information", "How much the agents' actions know of each other", caption, spec_of(chart)
    )


def joint_actions(rows: Sequence[Row], spec: Spec) -> list[Chart]:
    """Draw two agents' actions against each other at the state where the flow has most modes.

    One chart per action dimension, two at most; a point's area counts the samples on it, which
    only differs where actions are discrete.
    """
    if not rows:
        return []
    state = rows[0]["state"]
    labels = {"flow": "Joint flow", "policy": "One-step policies"}
    charts = []
    for dim in sorted({row["dim"] for row in rows})[:2]:
        counts = Counter(
            (row["source"], row["x"], row["y"]) for row in rows if row["state"] == state and row["dim"] == dim
        )
        values = [
            {"source": labels[source], "x": x, "y": y, "count": count}
            for (source, x, y), count in counts.items()
        ]
        first, second = spec.agent_ids[:2]
        chart = (
            alt.Chart(alt.InlineData(values=values))
            .mark_point(filled=False, strokeWidth=1.5, opacity=0.75)
            .encode(
                x=alt.X(
                    "x:Q", title=f"Action of {first}", scale=alt.Scale(zero=False, nice=False, padding=10)
                ),
                y=alt.Y(
                    "y:Q", title=f"Action of {second}", scale=alt.Scale(zero=False, nice=False, padding=10)
                ),
                color=alt.Color(
                    "source:N",
                    scale=alt.Scale(domain=list(labels.values()), range=[FLOW, POLICY]),
                    legend=alt.Legend(title=None, orient="top"),
                ),
                shape=alt.Shape(
                    "source:N", scale=alt.Scale(domain=list(labels.values()), range=["circle", "cross"])
                ),
                size=alt.Size("count:Q", scale=alt.Scale(domainMin=1, range=[36, 400]), legend=None)
                if spec.action_kind == "discrete"
                else alt.value(36),
                tooltip=[
                    alt.Tooltip("source:N", title="Played by"),
                    alt.Tooltip("x:Q", title=first, format=".2f"),
                    alt.Tooltip("y:Q", title=second, format=".2f"),
                    alt.Tooltip("count:Q", title="Samples"),
                ],
            )
            .properties(height=260, width="container")
        )
        title = "Two agents at one state" + (
            "" if spec.action_kind == "discrete" else f", dimension {dim:.0f}"
        )
        caption = (
            "Samples of the flow and of the policies at one recorded state, the one of those examined where "
            "the flow has most modes. Clusters that the policies leave empty are modes that they do not play."
        )
        charts.append(Chart(f"joint_actions_{dim:.0f}", title, caption, spec_of(chart)))
    return charts


def spec_of(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """Return the specification without Altair's own look: the page configures all charts alike."""
    spec: dict[str, Any] = chart.to_dict()
    del spec["config"]
    return spec | {"autosize": {"type": "fit-x", "contains": "padding"}}
