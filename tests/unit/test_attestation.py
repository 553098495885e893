"""Attestations: what independent programs make of them, and what no change to bundle or envelope survives."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from test_cli import fail, run
from typer.testing import CliRunner

from macflow import cli
from macflow.cli_signing import FROM_ENVIRONMENT
from macflow.lineage.attestation import files_of, make_statement, verify
from macflow.lineage.keys import make_keys, read_private_key, read_public_key
from macflow.types import DataError

URL = "https://example.org/vaults/3m.zip"
ARCHIVE = "ab" * 32
MANIFEST: dict[str, Any] = {
    "made_from": {"data/prepared": "12" * 32, "models/flow": "34" * 32},
    "params": {"distill": {"alpha": 0.03, "hidden": [256, 256]}, "training": {"seed": 7}},
    "env": {"id": "smac/3m", "kwargs": {}, "version": None},
    "source": {
        "path": "data/raw",
        "sha256": "56" * 32,
        "dataset_id": "og-marl/3m-v0",
        "behaviour": {"kind": "og-marl", "url": URL, "sha256": ARCHIVE},
    },
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "policy"
    (folder / "critic").mkdir(parents=True)
    (folder / "policy.json").write_text(json.dumps(MANIFEST))
    (folder / "policy.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "critic" / "critic.safetensors").write_bytes(b"weights of the critic")
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public, _ = make_keys(tmp_path / "keys", None)
    return private, public


@pytest.fixture
def attestation(bundle: Path, keys: tuple[Path, Path]) -> Path:
    run("lineage", "sign", bundle, "--key", keys[0])
    return bundle.with_name("policy.attestation.json")


def statement_of(attestation: Path) -> dict[str, Any]:
    payload = base64.b64decode(json.loads(attestation.read_text())["payload"])
    statement: dict[str, Any] = json.loads(payload)
    return statement


def test_the_statement_is_in_toto_with_slsa_provenance(bundle: Path, attestation: Path) -> None:
    statement = statement_of(attestation)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {subject["name"]: subject["digest"] for subject in statement["subject"]} == {
        name: {"sha256": hashlib.sha256((bundle / name).read_bytes()).hexdigest()}
        for name in ("policy.json", "policy.safetensors", "critic/critic.safetensors")
    }
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == MANIFEST["params"]
    named = {entry["name"]: entry for entry in definition["resolvedDependencies"]}
    assert named["published dataset"]["uri"] == URL
    assert named["published dataset"]["digest"] == {"sha256": ARCHIVE}
    assert named["data/prepared"]["digest"] == {"macflow_folder_sha256": "12" * 32}
    assert named["data/raw"]["annotations"]["environment"]["id"] == "smac/3m"
    # A bundle outside a project names no commit, and none is made up.
    assert not any("gitCommit" in entry["digest"] for entry in named.values())
    assert set(statement["predicate"]["runDetails"]) == {"builder", "byproducts"}


def test_others_verify_the_signature_without_macflow(
    tmp_path: Path, keys: tuple[Path, Path], attestation: Path
) -> None:
    envelope = json.loads(attestation.read_text())
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(envelope["payload"])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    # The DSSE specification's own words: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body.
    signed = b" ".join(
        [b"DSSEv1", b"28", b"application/vnd.in-toto+json", str(len(payload)).encode(), payload]
    )
    key = serialization.load_pem_public_key(keys[1].read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(signature, signed)
    if openssl := shutil.which("openssl"):
        (tmp_path / "signed").write_bytes(signed)
        (tmp_path / "signature").write_bytes(signature)
        checked = subprocess.run(
            [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in", tmp_path / "signed",
             "-sigfile", tmp_path / "signature"],
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert "Verified Successfully" in checked.stdout, checked.stderr


def test_signing_leaves_the_bundle_alone_and_twice_gives_the_same_bytes(
    bundle: Path, keys: tuple[Path, Path], attestation: Path
) -> None:
    before, signed = files_of(bundle), attestation.read_bytes()
    run("lineage", "sign", bundle, "--key", keys[0])
    assert (files_of(bundle), attestation.read_bytes()) == (before, signed)
    shown = run("lineage", "verify-signature", bundle, "--key", keys[1])
    assert "all 3 files are as signed by" in shown
    assert json.loads(run("lineage", "verify-signature", bundle, "--key", keys[1], "--json"))[
        "statement"
    ] == statement_of(attestation)


def test_a_bundle_is_checked_wherever_it_was_carried(
    tmp_path: Path, bundle: Path, keys: tuple[Path, Path], attestation: Path
) -> None:
    elsewhere = tmp_path / "received"
    shutil.copytree(bundle, elsewhere)
    shutil.copy(attestation, tmp_path / "a.json")
    run("lineage", "verify-signature", elsewhere, "--key", keys[1], "--attestation", tmp_path / "a.json")


def test_every_difference_of_the_files_is_named(
    bundle: Path, keys: tuple[Path, Path], attestation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "policy.safetensors").write_bytes(b"other")
    (bundle / "critic" / "critic.safetensors").unlink()
    (bundle / "sitecustomize.py").write_text("print('hello')")
    told = fail(capsys, "lineage", "verify-signature", bundle, "--key", keys[1])
    assert "policy.safetensors is changed" in told
    assert "critic/critic.safetensors is missing" in told
    assert "sitecustomize.py is not attested" in told
    assert "policy.json" not in told.replace("policy.attestation.json", "")


def test_a_link_to_a_folder_cannot_hide_files(
    tmp_path: Path, bundle: Path, keys: tuple[Path, Path], attestation: Path
) -> None:
    (tmp_path / "more").mkdir()
    (bundle / "more").symlink_to(tmp_path / "more")
    with pytest.raises(DataError, match="more: a link to a folder"):
        verify(bundle, attestation, read_public_key(keys[1]))


def test_another_key_is_named(
    tmp_path: Path, bundle: Path, attestation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, public, other = make_keys(tmp_path / "others", None)
    told = fail(capsys, "lineage", "verify-signature", bundle, "--key", public)
    assert "signed by another key" in told
    assert other in told


def test_a_statement_of_somebody_else_under_our_key_id_is_refused(
    tmp_path: Path, bundle: Path, keys: tuple[Path, Path], attestation: Path
) -> None:
    other, _, _ = make_keys(tmp_path / "others", None)
    ours = json.loads(attestation.read_text())["signatures"][0]["keyid"]
    run("lineage", "sign", bundle, "--key", other)
    forged = json.loads(attestation.read_text())
    forged["signatures"][0]["keyid"] = ours
    attestation.write_text(json.dumps(forged, indent=2, sort_keys=True) + "\n")
    with pytest.raises(DataError, match="damaged or forged"):
        verify(bundle, attestation, read_public_key(keys[1]))


@pytest.mark.parametrize("seed", range(3))
def test_no_single_changed_byte_passes(
    bundle: Path, keys: tuple[Path, Path], attestation: Path, seed: int
) -> None:
    """Change one random byte, of the envelope and of the bundle's files in turn, 100 times each."""
    rng = random.Random(seed)
    key = read_public_key(keys[1])
    files = [attestation, *(bundle / name for name in files_of(bundle))]
    for file in files:
        whole = file.read_bytes()
        for _ in range(100):
            place = rng.randrange(len(whole))
            changed = bytearray(whole)
            changed[place] ^= rng.randrange(1, 256)
            file.write_bytes(changed)
            with pytest.raises(DataError):
                verify(bundle, attestation, key)
        file.write_bytes(whole)
    verify(bundle, attestation, key)


def test_every_byte_of_the_envelope_counts(bundle: Path, keys: tuple[Path, Path], attestation: Path) -> None:
    key, whole = read_public_key(keys[1]), attestation.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        # The lowest bit: in base64's last letter it may be one that decoding ignores.
        changed[place] ^= 1
        attestation.write_bytes(changed)
        with pytest.raises(DataError):
            verify(bundle, attestation, key)
    for shortened in (
        b"",
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"\n",
        b"null",
        b"[]",
        b'{"payload": 1}',
    ):
        attestation.write_bytes(shortened)
        with pytest.raises(DataError, match="damaged"):
            verify(bundle, attestation, key)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sign", "nowhere", "--key", "KEY"], "nowhere: folder not found"),
        (["sign", "BUNDLE", "--key", "PUBLIC"], "no private key in PEM"),
        (["sign", "BUNDLE", "--key", "nokey"], "nokey: cannot be read"),
        (["sign", "BUNDLE", "--key", "KEY", "--attestation", "BUNDLE/a.json"], "must lie outside the bundle"),
        (["sign", "BUNDLE/critic", "--key", "KEY"], "must hold one JSON file with `made_from`"),
        (["verify-signature", "BUNDLE", "--key", "KEY"], "no public key in PEM"),
        (["verify-signature", "BUNDLE", "--key", "PUBLIC"], "policy.attestation.json: file not found"),
    ],
)
def test_mistakes_are_told(
    bundle: Path,
    keys: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    words: str,
) -> None:
    names = {"KEY": str(keys[0]), "PUBLIC": str(keys[1])}
    filled = [names.get(word, word.replace("BUNDLE", str(bundle))) for word in command]
    assert words in fail(capsys, "lineage", *filled)
    assert not bundle.with_name("policy.attestation.json").exists()


def test_keys_are_private_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    # However open the user's files are by default.
    before = os.umask(0)
    try:
        told = run("lineage", "keygen", "--out", folder)
    finally:
        os.umask(before)
    private, public = folder / "macflow.key", folder / "macflow.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "not encrypted" in told
    was = private.read_bytes()
    assert "never overwritten" in fail(capsys, "lineage", "keygen", "--out", folder)
    assert private.read_bytes() == was
    private.unlink()
    # The public one alone is not overwritten either, and no half of a pair is left.
    assert "never overwritten" in fail(capsys, "lineage", "keygen", "--out", folder)
    assert not private.exists()
    assert public.exists()


def test_a_passphrase_is_taken_from_the_environment(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FROM_ENVIRONMENT, "a long passphrase")
    assert "encrypted" in run("lineage", "keygen", "--out", tmp_path / "keys")
    private = tmp_path / "keys" / "macflow.key"
    assert b"ENCRYPTED PRIVATE KEY" in private.read_bytes()
    run("lineage", "sign", bundle, "--key", private)
    run("lineage", "verify-signature", bundle, "--key", tmp_path / "keys" / "macflow.pub")
    monkeypatch.setenv(FROM_ENVIRONMENT, "another one")
    assert "wrong passphrase" in fail(capsys, "lineage", "sign", bundle, "--key", private)
    monkeypatch.delenv(FROM_ENVIRONMENT)
    assert FROM_ENVIRONMENT in fail(capsys, "lineage", "sign", bundle, "--key", private)


def test_a_passphrase_is_asked_for(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FROM_ENVIRONMENT, raising=False)
    folder = tmp_path / "keys"
    asked = ["lineage", "keygen", "--out", str(folder), "--passphrase"]
    made = CliRunner().invoke(cli.app, asked, input="one\ntwo\nsame\nsame\n")
    assert made.exit_code == 0, made.output
    assert "same" not in made.output
    assert isinstance(read_private_key(folder / "macflow.key", lambda: b"same"), Ed25519PrivateKey)
    with pytest.raises(DataError, match="wrong passphrase"):
        read_private_key(folder / "macflow.key", lambda: b"one")


def test_only_ed25519_keys_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "x25519.pem"
    key = X25519PrivateKey.generate()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    with pytest.raises(DataError, match="must be an Ed25519 key"):
        read_private_key(file, lambda: b"")
    file.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(DataError, match="must be an Ed25519 key"):
        read_public_key(file)


def test_a_bundle_with_two_manifests_says_so(bundle: Path) -> None:
    (bundle / "other.json").write_text('{"made_from": {}}')
    with pytest.raises(DataError, match=r"received other.json, policy.json"):
        make_statement(bundle)
