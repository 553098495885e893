"""dvc.yaml tells DVC the truth about what each stage reads."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.build_plots_page import PAGE, wanted_versions
from tools.sync_dvc_deps import ROOT, code_deps, split_deps, stage_module

PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES: dict[str, Any] = PIPELINE["stages"]
# Folders that stages write; a path below them on a command line is an output or the output of another.
DATA_FOLDERS = ("data/", "models/", "metrics/", "plots/", "reports/")


def outputs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        path: options
        for kind in ("outs", "metrics")
        for out in stage.get(kind, [])
        for path, options in out.items()
    }


def resolved(text: str) -> str:
    return text.replace("${prepare.raw}", PARAMS["prepare"]["raw"])


def sections_read(files: list[str]) -> set[str]:
    """Return the constant section names of `load_section` calls."""
    return {
        node.args[1].value
        for file in files
        if file.endswith(".py")
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "load_section"
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_what_the_stage_imports(name: str) -> None:
    _, listed = split_deps(STAGES[name]["deps"])
    wanted = code_deps(ROOT, stage_module(STAGES[name]["cmd"]))
    missing, surplus = sorted(set(wanted) - set(listed)), sorted(set(listed) - set(wanted))
    assert listed == wanted, (
        f"stage {name}: add {missing}, remove {surplus} (or run: python tools/sync_dvc_deps.py)"
    )


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_the_sections_that_the_stage_loads(name: str) -> None:
    listed = {str(param).split(".")[0] for param in STAGES[name]["params"]}
    assert listed <= set(PARAMS)
    if name == "report":  # reads the file as a whole, to show it, but for what comes after it
        assert listed == set(PARAMS) - {"finetune"}
    else:
        assert listed == sections_read(code_deps(ROOT, stage_module(STAGES[name]["cmd"])))


@pytest.mark.parametrize("name", STAGES)
def test_each_path_of_the_command_is_a_dependency_or_an_output(name: str) -> None:
    stage = STAGES[name]
    known = {resolved(dep) for dep in stage["deps"]} | set(outputs(stage))
    words = shlex.split(resolved(stage["cmd"]))
    paths = {word for word in words if word.startswith(DATA_FOLDERS)}
    assert paths <= known
    assert set(outputs(stage)) <= paths, "an output that the command does not name"


def test_data_dependencies_are_outputs_of_other_stages() -> None:
    written = {path for stage in STAGES.values() for path in outputs(stage)}
    for name, stage in STAGES.items():
        data, _ = split_deps(stage["deps"])
        assert {resolved(dep) for dep in data} <= written - set(outputs(stage)), name


def outputs_before(page: str) -> set[str]:
    """Return the outputs of all stages between the data and a page, those of recording left out."""
    written = {path: name for name, stage in STAGES.items() for path in outputs(stage)}
    pending, seen = [page], set[str]()
    while pending:
        deps = (resolved(dep) for dep in STAGES[pending.pop()]["deps"])
        fresh = {written[dep] for dep in deps if dep in written} - seen
        seen |= fresh
        pending += fresh
    return {path for name in seen - {"record"} for path in outputs(STAGES[name])}


def test_reports_depend_on_every_output_before_them_but_not_on_recording() -> None:
    # Data that `prepare.raw` names were not recorded here: nothing but `prepare.raw` may lead to `record`.
    later = {"finetune", "evaluate_finetuned", "report_finetuned"}
    assert outputs_before("report") == {
        path
        for name, stage in STAGES.items()
        if name not in {"record", "report"} | later
        for path in outputs(stage)
    }
    assert outputs_before("report") <= set(STAGES["report"]["deps"])
    shown = {
        path for name in later for path in outputs(STAGES[name]) if path.startswith(("metrics", "plots"))
    }
    assert shown <= set(STAGES["report_finetuned"]["deps"])
    recorded = set(outputs(STAGES["record"]))
    for name, stage in STAGES.items():
        assert recorded.isdisjoint(stage["deps"]), name


def test_no_output_is_deleted_before_there_is_a_better_one() -> None:
    for name, stage in STAGES.items():
        for path, options in outputs(stage).items():
            assert options.get("persist") is True, f"{name}: {path}"
        for metric in stage.get("metrics", []):
            assert next(iter(metric.values()))["cache"] is False, f"{name}: metrics are committed to git"


def test_plots_and_artifacts_show_what_stages_write() -> None:
    written = {path for stage in STAGES.values() for path in outputs(stage)}
    for plot in PIPELINE["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert str(Path(file).parent) in written, file
    assert PIPELINE["artifacts"]["policy"]["path"] in written


def test_lazy_exports_strings_and_templates_are_followed(tmp_path: Path) -> None:
    files = {
        "__init__.py": "def __getattr__(name):\n    return import_module('macflow.lazy')\n",
        "lazy.py": "x = 1\n",
        "asks.py": "from macflow import thing\n",
        "plain.py": "import macflow.inner.leaf\nimport macflow.empty\n",
        "inner/__init__.py": "x = 1\n",
        "empty/__init__.py": "",
        "inner/leaf.py": "from . import other\n",
        "inner/other.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from macflow import typed\n"
            "def run():\n    return ['-m', 'macflow.worker']\n"
        ),
        "typed.py": "x = 1\n",
        "worker.py": "import jinja2\nFOLDER = Path(__file__).parent / 'weights'\n",
        "weights/net.bin": "1",
        "page.html.j2": "<p>",
    }
    for name, text in files.items():
        path = tmp_path / "macflow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plain = {"__init__.py", "plain.py", "inner/__init__.py", "inner/leaf.py", "inner/other.py", "worker.py"}
    assert set(code_deps(tmp_path, "macflow.plain")) == {
        f"macflow/{f}" for f in plain | {"page.html.j2", "weights"}
    }
    assert set(code_deps(tmp_path, "macflow.asks")) == {
        f"macflow/{f}" for f in ("__init__.py", "asks.py", "lazy.py")
    }


def test_the_plots_page_has_the_scripts_of_the_installed_dvc() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(wanted_versions()) == 3
    for package, version in wanted_versions():
        assert f"<!-- {package} {version}\n" in page, "run: python tools/build_plots_page.py"
    assert "<script src=" not in page
    assert page.count("{plot_divs}") == 1
    assert "{scripts}" not in page
    assert len(page.encode()) < 1_000_000
