"""Say in a few lines what the pipeline made: read from metrics/, so it is what the report shows too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "index.html"
ACTORS = {
    "policy": "one-step policy, each agent alone",
    "flow": "joint flow, all agents together",
    "behaviour": "recorded behaviour, played again",
    "random": "random actions",
}


def main() -> None:
    """Print the summary."""
    evaluate = _read("evaluate")
    print(f"\n{evaluate['env']}: mean team return of {evaluate['episodes']} episodes, 95% interval\n")
    for actor, label in ACTORS.items():
        if actor in evaluate:
            print(f"  {label:<34} {_line(evaluate[actor])}")
    dataset = evaluate["dataset"]
    print(f"  {'dataset':<34} {dataset['return_mean']:8.2f}{'':22}{_score(dataset['normalized_return'])}")
    if evaluate["reference"]:
        print("\n  scale: 0 random, 100 expert")
    timings = _read("timings/evaluate")
    print(
        f"\ntime to act: {timings['policy']['latency_us_p50']:.0f} us one-step policy, "
        f"{timings['flow']['latency_us_p50']:.0f} us flow (median, all agents)"
    )
    raised = {name: check for name, check in _read("diagnose")["checks"].items() if check["raised"]}
    for name, check in raised.items():
        print(f"failure signature {name}: {check['value']:.3g}, above {check['threshold']:.3g}")
    if not raised:
        print("failure signatures: none raised")
    print(f"\npolicy: {ROOT / 'models' / 'policy'}\nreport: {REPORT.as_uri()}")


def _read(name: str) -> Any:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def _line(result: dict[str, float]) -> str:
    interval = f"[{result['return_ci95_low']:.2f}, {result['return_ci95_high']:.2f}]"
    return f"{result['return_mean']:8.2f} {interval:<20} {_score(result['normalized_return'])}"


def _score(normalized: float | None) -> str:
    return "" if normalized is None else f"{normalized:6.1f}"


if __name__ == "__main__":
    main()
