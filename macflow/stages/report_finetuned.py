"""Stage `report_finetuned`: what fine-tuning came to, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from macflow.config import FinetuneParams, ReportParams, load_section
from macflow.files import write_text
from macflow.report.finetuned import read_content, render_page
from macflow.report.render import machine_facts, machine_script
from macflow.stages._common import run_stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and the output."""
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of the stages' metrics")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help="folder of the stages' plots")


def main(arguments: argparse.Namespace) -> None:
    """Write the page about fine-tuning, and machine.js, which tells of this machine, beside it."""
    params = load_section(arguments.params, "report", ReportParams)
    # The page shows what was asked for; rules are checked as everywhere.
    load_section(arguments.params, "finetune", FinetuneParams)
    content = read_content(arguments.params, arguments.metrics, arguments.plots)
    write_text(arguments.out, render_page(content, params.title))
    write_text(arguments.out.with_name("machine.js"), machine_script(machine_facts(arguments.metrics)))
    print(f"report_finetuned: {arguments.out}")


if __name__ == "__main__":
    run_stage("report_finetuned", main, add_arguments)
