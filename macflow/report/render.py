"""Turn the report's content into one HTML page, and the facts of this machine into a script beside it."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from macflow.files import read_json
from macflow.report import numbers
from macflow.report.charts import build_charts
from macflow.report.content import Content, attention, check_title, dataset_mean, headline, interval
from macflow.report.graph import lay_out

TEMPLATES = Path(__file__).parent


def render_page(content: Content, title: str) -> str:
    """Return the page. Equal content gives equal text: nothing in it depends on time or place."""
    environment = page_templates()
    environment.filters["check_title"] = check_title
    evaluation = content.evaluation
    charts = build_charts(content)
    return environment.get_template("report.html.j2").render(
        title=title,
        content=content,
        headline=headline(evaluation),
        attention=attention(content),
        normalised=evaluation.reference is not None,
        interval=lambda returns: interval(evaluation, returns),
        dataset_mean=dataset_mean(evaluation),
        charts=charts,
        specs={key: chart.spec for key, chart in charts.items()},
        gif=base64.b64encode(content.episode_gif).decode("ascii"),
        wide_graph=lay_out(content.lineage, vertical=False),
        tall_graph=lay_out(content.lineage, vertical=True),
        hashes={a.path: a.sha256[:10] if a.sha256 else "not present" for a in content.lineage.artifacts},
        chart_library=chart_library(),
    )


def page_templates(*others: Path) -> jinja2.Environment:
    """Return the pages' templates and those in `others`, with filters that write numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, *others]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "fixed", "signed", "percent", "setting"):
        environment.filters[name] = getattr(numbers, name)
    return environment


def machine_facts(metrics: Path) -> dict[str, Any]:
    """Collect what differs between identical runs: run cards and timings, by stage.

    The report's own card is left out: it is written after the report.
    """
    return {
        kind: {
            path.stem: read_json(path)
            for path in sorted((metrics / kind).glob("*.json"))
            if path.stem != "report"
        }
        for kind in ("run_cards", "timings")
    }


def machine_script(facts: dict[str, Any]) -> str:
    """Return a script that hands `facts` to the page; safe inside HTML too."""
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False).replace("<", "\\u003c")
    return f"window.macflowMachine = {text};\n"


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that cannot end its `script` element."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    # Minified names such as `t` would otherwise be globals.
    return "(()=>{" + re.sub(r"<(/script|!--)", r"\\x3c\1", bundle, flags=re.IGNORECASE) + "})();"
