"""Lineage on a real project: shown, proven, compared; every forgery and changed byte called out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import prov
import pytest
import yaml
from conftest import Project, copy_of
from lineage_changes import changed, choose, commit_all, stage_at, targets
from openlineage_rules import check_event
from prov.model import ProvDocument

from macflow.cli_lineage import DIFFERENCES, UNCHECKED, UNREADABLE
from macflow.files import digest, dvc_md5
from macflow.lineage import project as lineage
from macflow.lineage.findings import Findings
from macflow.lineage.impact import as_text as impact_text
from macflow.lineage.impact import find_impact
from macflow.lineage.text import as_json
from macflow.lineage.tree import Tree, read_tree
from macflow.lineage.verify import verify

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

POLICY = "models/policy"


def ask(project: Project, *words: str, code: int = 0) -> str:
    """Run `macflow lineage` as a user does."""
    done = project.run(sys.executable, "-m", "macflow.cli", "lineage", *words)
    assert done.returncode == code, done.stdout
    return done.stdout


def tree_of(root: Path, wanted: str) -> Tree:
    found = lineage.Project(root)
    return read_tree(found, lineage.find_subject(found, wanted))


def findings(root: Path, wanted: str | None = None) -> Findings:
    found = lineage.Project(root)
    return verify(found, None if wanted is None else lineage.find_subject(found, wanted))


def named(found: Findings) -> dict[str, set[str]]:
    """Return what is said of each node."""
    nodes: dict[str, set[str]] = {}
    for one in found.differences:
        nodes.setdefault(one.node, set()).add(one.what)
    return nodes


@pytest.fixture(scope="module")
def bundle(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the policy far from any project."""
    place = tmp_path_factory.mktemp("elsewhere") / "found"
    return Path(shutil.copytree(reproduced.root / POLICY, place))


@pytest.fixture(scope="module")
def history(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project with 50 later commits, each with another policy by the numbers; data and flow stay."""
    project = copy_of(reproduced, tmp_path_factory.mktemp("history"))
    for index in range(1, 51):
        retrain(project, round(0.03 + index / 100, 2), f"alpha {index}")
    yield project
    shutil.rmtree(project.root)


def retrain(project: Project, alpha: float, message: str) -> None:
    """Do by hand what `dvc repro distill evaluate` and a commit would, in a hundredth of the time."""
    root = project.root
    project.set_params({"distill": {"alpha": alpha}})
    manifest = json.loads((root / POLICY / "policy.json").read_text())
    manifest["params"]["distill"]["alpha"] = alpha
    (root / POLICY / "policy.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    measured = json.loads((root / "metrics/evaluate.json").read_text())
    measured["policy"]["return_mean"] = -alpha
    (root / "metrics/evaluate.json").write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n")
    lock = re.sub(r"(\bdistill:\n\s+alpha: )\S+", rf"\g<1>{alpha}", (root / "dvc.lock").read_text())
    for path in (POLICY, "metrics/evaluate.json"):
        files = [p for p in (root / path).rglob("*") if p.is_file()] or [root / path]
        size = sum(file.stat().st_size for file in files)
        entry = rf"(path: {path}\n\s+hash: md5\n\s+md5: )\S+(\n\s+size: )\d+"
        lock = re.sub(entry, rf"\g<1>{dvc_md5(root / path)}\g<2>{size}", lock)
    (root / "dvc.lock").write_text(lock)
    keep(root, root / POLICY)
    commit_all(root, message)


def keep(root: Path, folder: Path) -> None:
    """Put a folder into the cache as DVC does."""
    members = [
        {"md5": dvc_md5(p), "relpath": p.relative_to(folder).as_posix()}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]
    cache = root / ".dvc/cache/files/md5"
    for member in members:
        place = cache / member["md5"][:2] / member["md5"][2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy(folder / member["relpath"], place)
    whole = dvc_md5(folder)
    place = cache / whole[:2] / whole[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(sorted(members, key=lambda m: m["relpath"]), sort_keys=True))


def test_the_tree_leads_from_the_policy_to_the_source(reproduced: Project) -> None:
    text = ask(reproduced, POLICY)
    for stage in ("distill", "train_critic", "teacher", "train_flow", "prepare", "record"):
        assert f"stage {stage}: exec python -m macflow.stages.{stage}" in text
    for fact in (
        "distill.alpha=0.03",
        "reports/validation",
        "mpe-spread/medium-v0",
        "environment version: mpe2",
    ):
        assert fact in text
    for fact in ("behaviour weights: macflow/envs/weights md5", "torch 2.13.0", "training.device=cpu"):
        assert fact in text
    assert "warning" not in text


def test_json_has_every_digest_command_parameter_commit_and_card(reproduced: Project) -> None:
    content = json.loads(ask(reproduced, POLICY, "--format", "json"))
    nodes = {node["path"]: node for node in content["nodes"]}
    head = reproduced.check("git", "rev-parse", "HEAD").strip()
    for path, node in nodes.items():
        if node["kind"] == "source":
            assert node["source"]["environment"] == "mpe/spread"
            continue
        assert node["md5"] == dvc_md5(reproduced.root / path)
        assert node["sha256"] in (None, digest(reproduced.root / path))
        made = node["made_by"]
        locked = reproduced.lock()[made["stage"]]
        assert made["cmd"] == locked["cmd"]
        assert made["commit"]["commit"] == head
        assert made["run_card"]["packages"]["torch"].startswith("2.13.0")
        assert set(made["code"]) == {d["path"] for d in locked["deps"] if d["path"].startswith("macflow/")}
    assert nodes[POLICY]["sha256"] == digest(reproduced.root / POLICY) == content["subject"]["sha256"]
    assert set(nodes[POLICY]["made_from"]) == {
        "data/prepared",
        "models/flow",
        "models/teacher",
        "models/critic",
    }
    assert content["results"]["metrics/evaluate.json"]["policy"]["return_mean"]


@pytest.mark.parametrize("what", ["path", "file", "copy", "md5", "sha256", "revision"])
def test_a_policy_is_found_by_whatever_names_it(reproduced: Project, bundle: Path, what: str) -> None:
    folder = reproduced.root / POLICY
    wanted = {
        "path": str(folder),
        "file": str(folder / "policy.safetensors"),
        "copy": str(bundle),
        "md5": dvc_md5(folder)[:10],
        "sha256": digest(folder)[:16],
        "revision": f"HEAD:{POLICY}",
    }[what]
    tree = tree_of(reproduced.root, wanted)
    assert (tree.subject.path, tree.subject.md5) == (POLICY, dvc_md5(folder))
    assert [node.path for node in tree.nodes][1:4] == ["data/raw", "metrics/record.json", "data/prepared"]


def test_a_policy_of_50_commits_ago_is_told_right_and_soon(history: Project) -> None:
    began = time.monotonic()
    content = json.loads(ask(history, f"HEAD~50:{POLICY}", "--format", "json"))
    assert time.monotonic() - began < 3.0
    first = history.check("git", "rev-parse", "HEAD~50").strip()
    made = next(node for node in content["nodes"] if node["path"] == POLICY)["made_by"]
    assert made["params"]["distill.alpha"] == 0.03
    assert made["commit"]["commit"] == content["subject"]["found_in"]["commit"] == first
    assert made["run_card"]["output"]["md5"] == content["subject"]["md5"]
    assert content["results"]["metrics/evaluate.json"]["policy"]["return_mean"] < -1


def test_a_copy_of_an_old_policy_is_known_by_its_bytes(history: Project, bundle: Path) -> None:
    tree = tree_of(history.root, str(bundle))
    assert tree.subject.version is not None
    assert tree.subject.version.commit == history.check("git", "rev-parse", "HEAD~50").strip()
    assert tree.root.made is not None
    assert tree.root.made.params["distill.alpha"] == 0.03
    found = findings(history.root, str(bundle))
    assert found.differences == []
    assert found.unchecked == []
    assert found.files > 20


def test_every_version_of_50_is_recorded_by_its_own_commit(history: Project) -> None:
    for back in (1, 17, 49):
        tree = tree_of(history.root, f"HEAD~{back}:{POLICY}")
        assert tree.root.made is not None
        assert tree.root.made.commit is not None
        assert tree.root.made.commit.subject == f"alpha {50 - back}"
        assert tree.root.made.params["distill.alpha"] == pytest.approx(0.03 + (50 - back) / 100)


def test_an_untouched_project_has_no_difference(reproduced: Project) -> None:
    assert "nothing differs" in ask(reproduced, "verify")
    content = json.loads(ask(reproduced, "verify", POLICY, "--json"))
    assert content["differences"] == content["unchecked"] == []
    assert content["files"] > 100


@pytest.mark.parametrize("count", [28, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_every_changed_byte_is_found_at_its_node(project: Project, bundle: Path, count: int) -> None:
    missed = []
    for target, place, mask in choose(targets(project.root, bundle), count, seed=7):
        node = target.node or stage_at(project.root, place)
        with changed(target.path, place, mask):
            found = findings(project.root, str(bundle) if target.group == "bundle" else None)
        if node not in named(found):
            missed.append((target, place, mask, named(found)))
    assert missed == []
    assert findings(project.root).differences == []


def test_a_policy_from_a_dirty_tree_is_called_out(project: Project) -> None:
    code = project.root / "macflow/stages/distill.py"
    before = code.read_text()
    assert "            params.alpha,\n" in before
    code.write_text(before.replace("            params.alpha,\n", "            2 * params.alpha,\n"))
    project.check("dvc", "repro", "--single-item", "distill")
    found = named(findings(project.root, POLICY))
    assert found["macflow/stages/distill.py"] == {"changed"}
    assert found["dvc.lock: distill"] == {"uncommitted"}
    # The traces are removed and the result committed: no commit has the code that it names.
    code.write_text(before)
    commit_all(project.root, "a result")
    found = named(findings(project.root, POLICY))
    assert found == {"macflow/stages/distill.py": {"dirty"}}
    text = ask(project, "verify", POLICY, code=DIFFERENCES)
    assert "which no commit holds" in text
    assert "distill ran with local changes to macflow/stages/distill.py" in text
    assert "with local changes to macflow/stages/distill.py" in ask(project, POLICY)


def test_parameters_that_no_commit_has_are_called_out(project: Project) -> None:
    project.set_params({"distill": {"alpha": 0.7}})
    project.check("dvc", "repro", "--single-item", "distill")
    project.set_params({"distill": {"alpha": 0.03}})
    commit_all(project.root, "a result")
    [one] = findings(project.root, POLICY).differences
    assert (one.node, one.what, one.where) == ("dvc.lock: distill", "dirty", "distill.alpha")
    assert (one.expected, one.found) == ("0.03", "0.7")


@pytest.mark.parametrize("committed", [False, True])
def test_a_lock_edited_by_hand_is_called_out(project: Project, committed: bool) -> None:
    lock = project.root / "dvc.lock"
    flow = project.lock()["train_flow"]["outs"]
    md5 = next(out["md5"] for out in flow if out["path"] == "models/flow")
    lock.write_text(lock.read_text().replace(md5, f"{'0' * 32}.dir"))
    if committed:
        commit_all(project.root, "edited")
    found = named(findings(project.root))
    if committed:
        assert found["models/flow"] == {"changed"}
    else:
        assert set(found) == {f"dvc.lock: {s}" for s in READERS_OF_THE_FLOW}
        assert found["dvc.lock: train_flow"] == {"edited"}


READERS_OF_THE_FLOW = ("train_flow", "teacher", "distill", "evaluate", "diagnose", "report", "finetune")


def test_an_edited_lock_is_called_out_with_the_bytes_adjusted_to_it(project: Project) -> None:
    """Weights of the flow are replaced, and lock, cache and commit are made to agree: the bundles do not."""
    folder = project.root / "models/flow"
    before = dvc_md5(folder)
    weights = bytearray((folder / "flow.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "flow.safetensors").write_bytes(weights)
    keep(project.root, folder)
    lock = project.root / "dvc.lock"
    lock.write_text(lock.read_text().replace(before, dvc_md5(folder)))
    commit_all(project.root, "all is well")
    found = findings(project.root)
    assert named(found)[POLICY] == {"forged"}
    told = {(one.node, one.where) for one in found.differences}
    assert (POLICY, "policy.json: made_from.models/flow") in told
    assert ("models/teacher", "teacher.json: made_from.models/flow") in told


def test_outputs_swapped_between_stages_are_called_out(project: Project) -> None:
    flow, critic = (project.root / "models" / name for name in ("flow", "critic"))
    flow.rename(flow.with_name("kept"))
    critic.rename(flow)
    flow.with_name("kept").rename(critic)
    found = findings(project.root)
    assert named(found) == {"models/flow": {"swapped"}, "models/critic": {"swapped"}}
    assert "the bytes of models/critic" in found.differences[0].found
    assert named(findings(project.root, str(flow)))["models/critic"] == {"swapped"}


def test_swapped_hashes_in_a_committed_lock_are_called_out(project: Project) -> None:
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    stages = lock["stages"]
    outs = {out["path"]: out for stage in ("train_flow", "train_critic") for out in stages[stage]["outs"]}
    flow, critic = outs["models/flow"], outs["models/critic"]
    for key in ("md5", "size"):
        flow[key], critic[key] = critic[key], flow[key]
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    commit_all(project.root, "swapped")
    found = named(findings(project.root))
    assert "swapped" in found["models/flow"]
    assert "swapped" in found["models/critic"]


def test_a_bundle_with_a_forged_digest_is_called_out(project: Project, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(project.root / POLICY, tmp_path / "forged"))
    manifest = json.loads((forged / "policy.json").read_text())
    manifest["made_from"]["data/prepared"] = "0" * 64
    (forged / "policy.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    text = ask(project, "verify", str(forged), "--project", str(project.root), code=DIFFERENCES)
    assert f"{POLICY}: changed policy.json" in text
    assert f"{POLICY}: forged policy.json: made_from.data/prepared" in text
    # In the project, with lock, cache and commit made to agree.
    before = dvc_md5(project.root / POLICY)
    shutil.copy(forged / "policy.json", project.root / POLICY / "policy.json")
    keep(project.root, project.root / POLICY)
    lock = project.root / "dvc.lock"
    lock.write_text(lock.read_text().replace(before, dvc_md5(project.root / POLICY)))
    commit_all(project.root, "all is well")
    found = findings(project.root, POLICY)
    assert named(found) == {POLICY: {"forged"}}
    assert found.differences[0].where == "policy.json: made_from.data/prepared"
    assert found.differences[0].expected == f"sha256 {digest(project.root / 'data/prepared')}"


def test_bytes_that_no_record_has_are_called_out(reproduced: Project, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/policy.json").write_text("{}")
    asked = ("verify", str(tmp_path / "policy"), "--project", str(reproduced.root))
    assert "records these bytes" in ask(reproduced, *asked, code=DIFFERENCES)
    assert "no such file" in ask(reproduced, "verify", "models/nothing", code=UNREADABLE)
    assert "lies in no DVC project" in ask(reproduced, "verify", "--project", str(tmp_path), code=UNREADABLE)


def test_a_clone_without_data_says_what_it_could_not_check(reproduced: Project, tmp_path: Path) -> None:
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "--quiet", str(reproduced.root), str(clone.root)], check=True)
    text = ask(clone, "verify", POLICY, code=UNCHECKED)
    assert f"not here, so not checked: {POLICY}" in text
    # The policy arrives, and is proven to be the one that is recorded.
    shutil.copytree(reproduced.root / POLICY, clone.root / POLICY)
    text = ask(clone, "verify", POLICY, code=UNCHECKED)
    assert f"not checked: {POLICY}" not in text
    assert "not checked: data/raw" in text


def test_a_remote_is_hashed_too(project: Project, tmp_path: Path) -> None:
    project.check("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    project.check("dvc", "push", "--quiet")
    assert findings(project.root).differences == []
    shutil.rmtree(project.root / ".dvc/cache")
    assert findings(project.root).differences == []
    md5 = dvc_md5(project.root / POLICY / "policy.safetensors")
    with changed(tmp_path / "store/files/md5" / md5[:2] / md5[2:], 100, 1):
        [one] = findings(project.root).differences
    assert (one.node, one.where) == (POLICY, "policy.safetensors in the remote store")


def test_a_bucket_is_fetched_and_hashed_where_asked_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server", reason="no moto to serve S3")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **keys)
        client.create_bucket(Bucket="audit")
        project.check("dvc", "remote", "add", "--local", "--default", "s3", "s3://audit/store")
        for name, value in (("endpointurl", url), ("access_key_id", "test"), ("secret_access_key", "test")):
            project.check("dvc", "remote", "modify", "--local", "s3", name, value)
        project.check("dvc", "push", "--quiet")
        assert "nothing differs" in ask(project, "verify", POLICY, "--network")
        md5 = dvc_md5(project.root / POLICY / "policy.safetensors")
        client.put_object(Bucket="audit", Key=f"store/files/md5/{md5[:2]}/{md5[2:]}", Body=b"other")
        assert "nothing differs" in ask(project, "verify", POLICY)
        text = ask(project, "verify", POLICY, "--network", code=DIFFERENCES)
        assert f"{POLICY}: changed policy.safetensors in the remote s3" in text
    finally:
        server.stop()


def test_the_difference_of_two_policies(history: Project) -> None:
    content = json.loads(ask(history, "diff", f"HEAD~50:{POLICY}", POLICY, "--json"))
    assert content["parameters"] == [{"name": "distill.alpha", "first": 0.03, "second": 0.53}]
    assert [one["name"] for one in content["data"]] == [POLICY]
    assert content["code"] == content["commands"] == content["source"] == []
    moved = {one["name"]: one["second"] for one in content["metrics"]}
    assert moved["metrics/evaluate.json: policy.return_mean"] == -0.53
    assert "distill.alpha: 0.03 -> 0.53 (+0.5)" in ask(history, "diff", f"HEAD~50:{POLICY}", POLICY)
    assert ask(history, "diff", POLICY, f"HEAD:{POLICY}").strip() == "no difference"


def test_the_impact_of_a_dataset(history: Project) -> None:
    root = history.root
    history.check("git", "tag", "--force", "released", "HEAD~20")
    name, affected = find_impact(lineage.Project(root), "data/prepared")
    assert name == dvc_md5(root / "data/prepared")
    policies = [one for one in affected if one.path == POLICY]
    assert len(policies) == 51
    assert [one.current for one in policies] == [False] * 50 + [True]
    assert "released" in policies[0].names
    assert "released" not in policies[40].names
    assert policies[10].results["evaluate.policy.return_mean"] == pytest.approx(-0.13)
    flows = [one for one in affected if one.path == "models/flow"]
    assert [one.through for one in flows] == [("data/prepared",)]
    text = impact_text(name, affected)
    assert f"{POLICY}  md5 {dvc_md5(root / POLICY)[:12]}  in use here" in text
    assert "no such file" in ask(history, "impact", "data/nothing", code=1)


def test_the_impact_of_a_download_is_found_by_its_digest(reproduced: Project) -> None:
    raw = digest(reproduced.root / "data/raw")
    content = json.loads(ask(reproduced, "impact", raw, "--json"))
    assert {"models/policy", "models/flow", "models/finetuned"} <= {x["path"] for x in content["affected"]}


def test_prov_is_valid_by_the_schema_of_the_submission(reproduced: Project) -> None:
    content = json.loads(ask(reproduced, POLICY, "--format", "prov"))
    file = Path(prov.__file__).parent / "tests/schemas/prov-json.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(content)
    document = ProvDocument.deserialize(content=json.dumps(content), format="json")
    again = ProvDocument.deserialize(content=document.serialize(format="json"), format="json")
    assert document == again
    artifact = f"artifact:{POLICY}/{dvc_md5(reproduced.root / POLICY)}"
    assert content["entity"][artifact]["macflow:sha256"] == digest(reproduced.root / POLICY)
    raw = f"artifact:data/raw/{dvc_md5(reproduced.root / 'data/raw')}"
    pairs = {(d["prov:generatedEntity"], d["prov:usedEntity"]) for d in content["wasDerivedFrom"].values()}
    prepared = f"artifact:data/prepared/{dvc_md5(reproduced.root / 'data/prepared')}"
    assert {(artifact, prepared), (prepared, raw)} <= pairs
    assert len(content["activity"]) == 6


def test_openlineage_events_are_the_clients_own(reproduced: Project) -> None:
    events = json.loads(ask(reproduced, POLICY, "--format", "openlineage"))
    for event in events:
        check_event(event)
    assert [event["job"]["name"] for event in events] == [
        "record", "prepare", "train_flow", "teacher", "train_critic", "distill",
    ]  # fmt: skip
    [policy] = [out for out in events[-1]["outputs"] if out["name"] == POLICY]
    assert policy["facets"]["version"]["datasetVersion"] == dvc_md5(reproduced.root / POLICY)
    made = {(out["name"], out["facets"]["version"]["datasetVersion"]) for e in events for out in e["outputs"]}
    read = {(x["name"], x["facets"]["version"]["datasetVersion"]) for e in events[1:] for x in e["inputs"]}
    assert read <= made


def test_a_missing_card_and_an_uncommitted_run_are_said(project: Project) -> None:
    shutil.rmtree(project.root / "metrics/made")
    shutil.rmtree(project.root / "metrics/run_cards")
    project.set_params({"distill": {"alpha": 0.2}})
    project.check("dvc", "repro", "--single-item", "distill")
    shutil.rmtree(project.root / "metrics/run_cards")
    content: dict[str, Any] = as_json(tree_of(project.root, str(project.root / POLICY)))
    assert content["warnings"] == ["distill: no commit records this run yet"]
    made = next(n for n in content["nodes"] if n["path"] == POLICY)["made_by"]
    assert made["commit"] is None
    # The others' cards are still in git.
    assert made["run_card"]["output"]["md5"] == content["subject"]["md5"]
    assert all(n["made_by"]["run_card"] for n in content["nodes"] if n["made_by"])
    found = named(findings(project.root, POLICY))
    assert found["dvc.lock: distill"] == {"uncommitted"}
    assert found["params.yaml"] == {"changed"}


def test_times_and_sizes_do_not_hide_a_change(project: Project) -> None:
    file = project.root / POLICY / "policy.safetensors"
    with changed(file, 200, 128):
        [one] = findings(project.root, POLICY).differences
    assert (one.node, one.what, one.where) == (POLICY, "changed", "policy.safetensors")
