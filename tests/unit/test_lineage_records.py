"""Hashes, locks, stores and events of the lineage, apart from any project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lineage_changes import commit_all
from openlineage.client.event_v2 import RunState
from openlineage_rules import check_event
from receiver import Receiver
from typer.testing import CliRunner

from flows import lineage_events
from macflow.cli import app
from macflow.files import digest, dvc_md5, write_text
from macflow.lineage.git import Repository
from macflow.lineage.hashing import SPLIT, hash_path, hash_paths
from macflow.lineage.lock import blocks, flatten, parse_lock, parse_pipeline
from macflow.lineage.store import find_stores
from macflow.stages._common import run_stage
from macflow.types import DataError

LOCK = """\
schema: '2.0'
stages:
  record:
    cmd: make raw
    outs:
    - path: data/raw
      hash: md5
      md5: {a}.dir
      size: 1
      nfiles: 1
  train:
    cmd: make model
    deps:
    - path: data/raw
      hash: md5
      md5: {a}.dir
    - path: macflow/x.py
      md5: {b}
    params:
      params.yaml:
        flow:
          steps: 3
        seed: 0
    outs:
    - path: models/flow
      md5: {c}.dir
  act:
    cmd: act
    deps:
    - path: models/flow
      md5: {read}.dir
    outs:
    - path: models/policy
      md5: {b}.dir
"""
A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def lock_text(read: str = C) -> str:
    return LOCK.format(a=A, b=B, c=C, read=read)


def test_hashes_are_those_of_dvc_and_of_the_manifests(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name, size in (("b.bin", SPLIT + 5), ("a/x.txt", 3), ("a.txt", 0), ("a-b", 1)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    hashed = hash_path(folder)
    assert hashed is not None
    assert (hashed.md5, hashed.sha256) == (dvc_md5(folder), digest(folder))
    assert hashed.size == SPLIT + 9
    listed = subprocess.run(["md5sum", folder / "b.bin"], capture_output=True, text=True, check=True).stdout
    assert hashed.files["b.bin"].md5 == listed.split()[0]
    one = hash_path(folder / "a/x.txt")
    assert one is not None
    assert (one.md5, one.sha256, one.is_folder) == (
        dvc_md5(folder / "a/x.txt"),
        digest(folder / "a/x.txt"),
        False,
    )


def test_a_file_under_two_names_has_the_digests_that_either_asks_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").write_text("x")
    names = [tmp_path / name for name in "abc"]
    hashed = hash_paths(names[:1], only_md5=names)
    digests = [one.files[""] for one in hashed.values() if one is not None]
    assert [one.md5 for one in digests] == [dvc_md5(tmp_path / "a")] * 3
    assert [one.sha256 for one in digests] == [digest(tmp_path / "a")] * 2 + [""]


def test_dvc_itself_agrees_with_the_hash_of_a_folder(tmp_path: Path) -> None:
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    folder = tmp_path / "out"
    for name in ("z/1", "a b", "ä", "z-1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    database = HashFileDB(LocalFileSystem(), str(tmp_path / "db"))
    _, _, tree = build(database, str(folder), LocalFileSystem(), "md5", dry_run=True)
    hashed = hash_path(folder)
    assert hashed is not None
    assert hashed.md5 == dvc_md5(folder) == tree.hash_info.value


def test_what_is_not_there_has_no_hash(tmp_path: Path) -> None:
    assert hash_paths([tmp_path / "nothing"]) == {tmp_path / "nothing": None}


def test_the_card_of_the_first_run_that_made_an_output_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "--out", "made"])

    def made_of(text: str) -> list[bytes]:
        run_stage(
            "stage",
            lambda arguments: write_text(arguments.out / "file", text),
            lambda parser: parser.add_argument("--out", type=Path),
        )
        return [path.read_bytes() for path in sorted(Path("metrics/made").iterdir())]

    [first] = made_of("one")
    output = {"path": "made", "md5": dvc_md5(Path("made")), "sha256": digest(Path("made"))}
    assert json.loads(first)["output"] == output
    assert made_of("one") == [first]
    assert len(made_of("two")) == 2
    assert first in made_of("one")
    latest = json.loads(Path("metrics/run_cards/stage.json").read_text())
    assert latest["output"] == output
    assert (latest["git_commit"], latest["git_dirty"], latest["git_changed"]) == (None, False, [])


def test_a_lock_knows_what_came_from_what() -> None:
    lock = parse_lock(lock_text(), "dvc.lock")
    assert [stage.name for stage in lock.ancestors("models/policy")] == ["record", "train", "act"]
    assert list(lock.descendants({"data/raw": f"{A}.dir"})) == ["train", "act"]
    train = lock.stages["train"]
    assert train.settings == {"flow.steps": 3, "seed": 0}
    assert ([d.path for d in train.code], [d.path for d in train.inputs]) == (["macflow/x.py"], ["data/raw"])


def test_a_stage_that_read_another_version_is_no_descendant() -> None:
    lock = parse_lock(lock_text(read=A), "dvc.lock")
    assert list(lock.descendants({"data/raw": f"{A}.dir"})) == ["train"]


def test_the_lines_of_a_stage_are_found_even_where_the_yaml_is_broken() -> None:
    whole = blocks(lock_text())
    assert list(whole) == ["", "record", "train", "act"]
    broken = blocks(lock_text().replace("    cmd: make model", "    cmd: [make model"))
    assert [name for name in whole if whole[name] != broken[name]] == ["train"]


@pytest.mark.parametrize("text", ["stages: [", "a: 1", "stages: {record: {}}", "- 1", "\x00"])
def test_a_lock_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(DataError, match=r"^here/dvc.lock: "):
        parse_lock(text, "here/dvc.lock")


def test_a_pipeline_fills_in_its_parameters() -> None:
    text = (
        "stages: {a: {cmd: 'make ${x.y}', deps: ['${x.y}'], metrics: [{m.json: {cache: false}}], outs: [o]}}"
    )
    stage = parse_pipeline(text, {"x": {"y": "raw"}}, "dvc.yaml")["a"]
    assert (stage.cmd, stage.deps, stage.outs) == ("make raw", {"raw"}, {"o", "m.json"})
    with pytest.raises(DataError, match=r"dvc.yaml: not a DVC pipeline: KeyError"):
        parse_pipeline(text, {}, "dvc.yaml")


def test_nested_values_have_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == [("a.b", 1), ("a.c", {}), ("d", [1])]


def test_stores_are_found_where_dvc_is_told_to_keep(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    for folder in ("cache-there", "remote"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".dvc/config").write_text(
        "[cache]\n    dir = ../cache-there\n['remote \"near\"']\n    url = ../remote\n"
        "['remote \"far\"']\n    url = s3://bucket/x\n    endpointurl = http://there\n"
    )
    (tmp_path / ".dvc/config.local").write_text("['remote \"far\"']\n    access_key_id = me\n")
    stores, buckets = find_stores(tmp_path)
    assert [(s.name, s.folder) for s in stores] == [
        ("cache", tmp_path / "cache-there"),
        ("remote near", tmp_path / "remote"),
    ]
    assert [(b.name, b.url) for b in buckets] == [("remote far", "s3://bucket/x")]
    assert buckets[0].options == {"key": "me", "client_kwargs": {"endpoint_url": "http://there"}}


def test_git_tells_contents_and_versions_of_the_lock(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=tmp_path, check=True)
    repository = Repository(tmp_path)
    assert not repository.present
    assert repository.lock_versions == []
    commits = []
    for text in ("one\n", "two\n"):
        (tmp_path / "dvc.lock").write_text(text)
        commits.append(commit_all(tmp_path, text.strip()))
    (tmp_path / "other file").write_text("x")
    commit_all(tmp_path, "nothing of the lock")
    repository = Repository(tmp_path)
    assert [(v.commit, v.subject, v.text) for v in repository.lock_versions] == [
        (commits[0], "one", "one\n"),
        (commits[1], "two", "two\n"),
    ]
    contents = repository.read_many([("HEAD", "other file"), ("HEAD", "nothing"), (commits[0], "dvc.lock")])
    assert list(contents.values()) == [b"x", None, b"one\n"]
    assert sorted(repository.versions_of("dvc.lock")) == [b"one\n", b"two\n"]
    assert repository.names_of(commits[0]) == ["main"]


def test_the_first_word_may_be_what_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    for words in (["models/policy"], ["show", "models/policy"], ["--format", "json", "models/policy"]):
        result = run(app, ["lineage", *words])
        assert isinstance(result.exception, DataError)
        assert "lies in no DVC project" in str(result.exception)
    assert "verify" in run(app, ["lineage", "--help"]).output
    assert run(app, ["lineage", "verify"]).exit_code == 2


@pytest.fixture
def unset() -> Iterator[None]:
    """Take OpenLineage's settings away; its client writes some of its own."""

    def take() -> None:
        for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
            del os.environ[name]

    take()
    yield
    take()


@pytest.fixture
def receiver(unset: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "ours")
    yield receiver
    receiver.close()


RUN = "0195d3a2-8a3c-7000-8000-0000000000ff"


def test_events_arrive_in_order(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(lock_text())
    lineage_events.tell_flow(RunState.START, RUN)
    lineage_events.tell_stage(tmp_path, "train", RunState.START, RUN, RUN)
    lineage_events.tell_stage(tmp_path, "train", RunState.COMPLETE, RUN, RUN)
    lineage_events.tell_flow(RunState.FAIL, RUN, "why")
    assert lineage_events.finish() is None
    events = [event for _, event in receiver.posted]
    for event in events:
        check_event(event)
        assert event["job"]["namespace"] == "ours"
    assert [event["eventType"] for event in events] == ["START", "START", "COMPLETE", "FAIL"]
    assert [data["name"] for data in events[2]["inputs"]] == ["data/raw"]
    assert events[2]["outputs"][0]["facets"]["version"]["datasetVersion"] == f"{C}.dir"
    assert events[3]["run"]["facets"]["errorMessage"]["message"] == "why"


def test_a_receiver_that_is_down_delays_and_fails_nothing(receiver: Receiver, tmp_path: Path) -> None:
    receiver.close()
    (tmp_path / "dvc.lock").write_text(lock_text())
    for _ in range(20):
        lineage_events.tell_stage(tmp_path, "train", RunState.COMPLETE, RUN, RUN)
    problem = lineage_events.finish()
    assert problem is not None
    assert problem.startswith("OpenLineage events were not delivered: ")


def test_a_lock_that_cannot_be_read_does_not_stop_the_news(receiver: Receiver, tmp_path: Path) -> None:
    lineage_events.tell_stage(tmp_path, "train", RunState.COMPLETE, RUN, RUN)
    assert lineage_events.finish() is None
    [(_, event)] = receiver.posted
    assert (event["inputs"], event["outputs"]) == ([], [])


@pytest.mark.usefixtures("unset")
def test_nobody_is_told_where_no_receiver_is_set(tmp_path: Path) -> None:
    lineage_events.tell_stage(tmp_path, "train", RunState.COMPLETE, RUN, RUN)
    assert lineage_events.finish() is None
