"""Signed statements of what a bundle holds and what it was made from, to be checked without anything else.

An in-toto Statement v1 lists every file of the bundle with its SHA-256; its predicate is SLSA's provenance
v1. It travels in a DSSE envelope, signed with Ed25519. It does not say when it was signed: the same bundle,
project and key give the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from macflow.files import digest
from macflow.lineage.keys import key_id
from macflow.lineage.locked import ATTESTATION, Project, committed_at, git, project_of
from macflow.types import DataError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "urn:macflow:pipeline:v1"
# No hosted builder vouches for itself here: whoever holds the key ran the stages.
BUILDER = "urn:macflow:builder:keyholder"
# A folder has no SHA-256 of its own: this one is of the lines `NAME\0SHA-256\n` of its files, names sorted.
FOLDER_DIGEST = "macflow_folder_sha256"
RUN_CARDS = "metrics/run_cards"
MAX_NAMED = 10


@dataclass(frozen=True)
class Attested:
    """A statement whose signature and files were checked."""

    statement: Mapping[str, Any]
    key_id: str

    @property
    def files(self) -> Mapping[str, str]:
        """Return the SHA-256 of every attested file."""
        return {subject["name"]: subject["digest"]["sha256"] for subject in self.statement["subject"]}

    @property
    def commit(self) -> str | None:
        """Return the git commit that made the bundle, None where the statement names none."""
        digests = (entry.get("digest", {}) for entry in self._definition["resolvedDependencies"])
        return next((str(found["gitCommit"]) for found in digests if "gitCommit" in found), None)

    @property
    def _definition(self) -> Mapping[str, Any]:
        definition: Mapping[str, Any] = self.statement["predicate"]["buildDefinition"]
        return definition


def attestation_of(path: Path) -> Path:
    """Return where the attestation of a bundle lies: beside it, so that the bundle's own hash stays."""
    bundle = path if path.name not in ("", "..") else path.resolve()
    return bundle.with_name(f"{bundle.name}{ATTESTATION}")


def make_statement(path: Path) -> dict[str, Any]:
    """Describe the bundle at `path`: its files, what it was made from and with which parameters.

    In a project whose dvc.lock lists the bundle, the commit and the parameters of all stages behind it are
    part of it. Elsewhere it says what the bundle's own manifest says, and names no commit.

    Raises:
        DataError: naming what is missing or malformed, or what differs from the commit or the lock.
    """
    manifest = read_manifest(path)
    project = project_of(path)
    if project is not None and project.lock.output_md5(project.key(path)) is None:
        project = None
    dependencies = []
    byproducts = []
    params = manifest.get("params", {})
    if project is not None:
        commit, stage = committed_at(project, path)
        params = project.lock.params(stage)
        dependencies.append(_source_code(project, commit))
        byproducts = _run_card(project, stage)
    dependencies += _materials(project, manifest)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in files_of(path).items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": params,
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"macflow": version("macflow")}},
                "byproducts": byproducts,
            },
        },
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a bundle: the one JSON file in it that says what it was made from."""
    if not path.is_dir():
        raise DataError(f"{path}: folder not found; it must be a bundle such as models/policy")
    found = {}
    for file in sorted(path.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not valid JSON: {error}") from None
        if isinstance(content, dict) and isinstance(content.get("made_from"), dict):
            found[file.name] = content
    if len(found) != 1:
        raise DataError(
            f"{path}: must hold one JSON file with `made_from`, as policy.json has it "
            f"(received {', '.join(found) or 'none'})"
        )
    return next(iter(found.values()))


def files_of(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder by its relative name.

    Raises:
        DataError: at a link to a folder, whose files would escape notice, and at what is no file.
    """
    found = {}
    for member in sorted(path.rglob("*")):
        if not (member.is_file() or (member.is_dir() and not member.is_symlink())):
            raise DataError(f"{member}: a link to a folder, or no regular file: it cannot be attested")
        if member.is_file():
            found[member.relative_to(path).as_posix()] = digest(member)
    return found


def sign(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Return a DSSE envelope around a statement, as bytes of a JSON file."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return _envelope_text(payload, key_id(key.public_key()), signature)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's PAE, the bytes that are signed: type and payload, each after its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def verify(path: Path, attestation: Path, key: Ed25519PublicKey) -> Attested:
    """Check an attestation's signature, then every file of the bundle at `path` against it.

    Raises:
        DataError: naming the wrong key, the damage to the envelope, or the files that are changed, missing or
            not attested.
    """
    attested = _open_envelope(attestation, key)
    if not path.is_dir():
        raise DataError(f"{path}: folder not found")
    wanted, present = attested.files, files_of(path)
    differing = [f"{name} is changed" for name in wanted if name in present and wanted[name] != present[name]]
    differing += [f"{name} is missing" for name in wanted if name not in present]
    differing += [f"{name} is not attested" for name in present if name not in wanted]
    if differing:
        more = f"; and {len(differing) - MAX_NAMED} more" if len(differing) > MAX_NAMED else ""
        raise DataError(f"{path}: not what {attestation} attests: {'; '.join(differing[:MAX_NAMED])}{more}")
    return attested


def _open_envelope(file: Path, key: Ed25519PublicKey) -> Attested:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: file not found") from None
    try:
        envelope = json.loads(content)
        signature = envelope["signatures"][0]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed_by, signed = signature["keyid"], base64.b64decode(signature["sig"], validate=True)
        kind = envelope["payloadType"]
        # Neither spaces nor the key's name nor unused bits of base64 are under the signature.
        as_written = kind == PAYLOAD_TYPE and _envelope_text(payload, signed_by, signed) == content
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
        raise DataError(f"{file}: damaged, or no DSSE envelope of one signature: {error!r}") from None
    if not as_written:
        raise DataError(f"{file}: damaged: not as `macflow lineage sign` writes it")
    if signed_by != key_id(key):
        raise DataError(f"{file}: signed by another key ({signed_by}) than the one given ({key_id(key)})")
    try:
        key.verify(signed, pre_authentication_encoding(PAYLOAD_TYPE, payload))
    except InvalidSignature:
        raise DataError(f"{file}: damaged or forged: the signature does not fit the statement") from None
    attested = Attested(json.loads(payload), signed_by)
    try:
        kinds = (attested.statement["_type"], attested.statement["predicateType"])
        # Read here, so that a statement of another form is refused, not believed in part.
        _ = attested.files, attested.commit
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: signed, but no statement of a bundle: {error!r}") from None
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise DataError(f"{file}: signed, but of types {kinds}, not ({STATEMENT_TYPE}, {PREDICATE_TYPE})")
    return attested


def _envelope_text(payload: bytes, signed_by: str, signature: bytes) -> bytes:
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": signed_by, "sig": base64.b64encode(signature).decode()}],
    }
    return (json.dumps(envelope, indent=2, sort_keys=True) + "\n").encode()


def _source_code(project: Project, commit: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": "code and parameters", "digest": {"gitCommit": commit}}
    remote = _remote(project.root)
    return entry if remote is None else entry | {"uri": remote}


def _remote(root: Path) -> str | None:
    """Return the address of git's remote `origin`, without a name or password in it."""
    try:
        address = git(root, "config", "--get", "remote.origin.url").strip()
    except DataError:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("https", "http", "ssh", "git") or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"git+{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _materials(project: Project | None, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a bundle was made from, and so on back as far as what lies here is what was used."""
    found: dict[str, dict[str, Any]] = {}
    published: dict[str, dict[str, Any]] = {}
    for path, recorded, source, env in _walk(project, manifest):
        found.setdefault(path, {"name": path, "digest": {FOLDER_DIGEST: recorded}})
        if source is None:
            continue
        behaviour = source.get("behaviour") or {}
        if path == source.get("path"):
            known = {"dataset_id": source.get("dataset_id"), "behaviour": behaviour, "environment": env}
            found[path]["annotations"] = {name: value for name, value in known.items() if value}
        if isinstance(behaviour, Mapping) and "sha256" in behaviour:
            entry = {"name": "published dataset", "digest": {"sha256": behaviour["sha256"]}}
            if "url" not in behaviour:
                # Of a file or of a folder: the importer does not say.
                entry = {"name": "imported dataset", "digest": {FOLDER_DIGEST: behaviour["sha256"]}}
            else:
                entry["uri"] = behaviour["url"]
            published[behaviour["sha256"]] = entry
    return [*found.values(), *published.values()]


def _walk(
    project: Project | None, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, str, Mapping[str, Any] | None, Any]]:
    """Yield every input's path and digest, with the source and environment that a manifest names for it."""
    source, env = manifest.get("source"), manifest.get("env")
    if isinstance(source, Mapping) and source.get("sha256"):
        yield source["path"], source["sha256"], source, env
    for path, recorded in sorted(manifest["made_from"].items()):
        yield path, recorded, None, None
        folder = None if project is None else project.root / path
        if folder is not None and folder.is_dir() and digest(folder) == recorded:
            try:
                inner = read_manifest(folder)
            except DataError:  # a source, which nothing made
                continue
            yield from _walk(project, inner)


def _run_card(project: Project, stage: str) -> list[dict[str, Any]]:
    """Return the stage's last run card: versions, machine, times. No hash ties it to the bundle."""
    file = project.root / RUN_CARDS / f"{stage}.json"
    if not file.is_file():
        return []
    content = file.read_bytes()
    return [
        {
            "name": f"{RUN_CARDS}/{stage}.json",
            "digest": {"sha256": hashlib.sha256(content).hexdigest()},
            "mediaType": "application/json",
            "content": base64.b64encode(content).decode(),
        }
    ]
