"""Stage `report`: everything the other stages measured, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from macflow.config import ReportParams, load_section
from macflow.files import write_text
from macflow.report.content import Inputs, read_content
from macflow.report.render import machine_facts, machine_script, render_page
from macflow.stages._common import run_stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and the output."""
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of the stages' metrics")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help="folder of the stages' plots")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the artifacts")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="the prepared dataset")
    parser.add_argument(
        "--recorded", type=Path, default=Path("data/raw"), help="the dataset that the stage `record` makes"
    )
    parser.add_argument(
        "--validation", type=Path, default=Path("reports/validation"), help="folder of the validation result"
    )
    parser.add_argument(
        "--lock", type=Path, default=Path("dvc.lock"), help="DVC's lock file, where there is one"
    )


def main(arguments: argparse.Namespace) -> None:
    """Write the report as one HTML page, and machine.js, which tells of this machine, beside it."""
    params = load_section(arguments.params, "report", ReportParams)
    content = read_content(
        Inputs(
            params=arguments.params,
            recorded=arguments.recorded,
            metrics=arguments.metrics,
            plots=arguments.plots,
            models=arguments.models,
            data=arguments.data,
            validation=arguments.validation,
            lock=arguments.lock,
        )
    )
    page = render_page(content, params.title)
    machine = machine_script(machine_facts(arguments.metrics))
    write_text(arguments.out, page)
    write_text(arguments.out.with_name("machine.js"), machine)
    print(f"report: {arguments.out}")


if __name__ == "__main__":
    run_stage("report", main, add_arguments)
