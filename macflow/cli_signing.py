"""`macflow lineage keygen`, `sign` and `verify-signature`: attestations that others check offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from macflow.cli_common import AsJson, print_json
from macflow.types import ConfigError, DataError

FROM_ENVIRONMENT = "MACFLOW_KEY_PASSPHRASE"


def keygen(
    out: Annotated[Path, typer.Option(help="Folder for macflow.key and macflow.pub.")],
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help=f"Ask for a passphrase; ${FROM_ENVIRONMENT} is taken unasked."),
    ] = False,
) -> None:
    """Make a pair of Ed25519 keys to sign with. Keys that are there are never overwritten."""
    from macflow.lineage.keys import make_keys

    secret = os.environ.get(FROM_ENVIRONMENT)
    if passphrase and not secret:
        secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    private, public, found = make_keys(out, secret.encode() if secret else None)
    print(f"{private}: private key, {'encrypted' if secret else 'not encrypted'}; keep it to yourself")
    print(f"{public}: public key, for whoever checks\nkey id: {found}")


def sign(
    path: Annotated[Path, typer.Argument(help="A bundle, such as models/policy.")],
    key: Annotated[
        Path, typer.Option(help=f"Private key; its passphrase is asked for or ${FROM_ENVIRONMENT}.")
    ],
    attestation: Annotated[
        Path | None, typer.Option(help="File to write; PATH.attestation.json if not given.")
    ] = None,
) -> None:
    """Attest every file of a bundle and what it was made from, in a file beside it.

    In a project the output must be what dvc.lock records, and everything must be committed. The bundle is
    not touched.
    """
    from macflow.files import write_text
    from macflow.lineage.attestation import attestation_of, make_statement
    from macflow.lineage.attestation import sign as signed
    from macflow.lineage.keys import read_private_key

    target = attestation or attestation_of(path)
    if target.absolute().is_relative_to(path.absolute()):
        raise ConfigError(f"`--attestation`: must lie outside the bundle, which it would change ({target})")
    statement = make_statement(path)
    write_text(target, signed(statement, read_private_key(key, _passphrase)).decode())
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    commit = next((d["digest"]["gitCommit"] for d in dependencies if "gitCommit" in d["digest"]), None)
    print(f"{target}: {len(statement['subject'])} files of {path}, {len(dependencies)} dependencies")
    print(f"commit {commit}" if commit else "no commit: no dvc.lock above lists this bundle")


def verify_signature(
    path: Annotated[Path, typer.Argument(help="The bundle.")],
    key: Annotated[Path, typer.Option(help="Public key of who should have signed.")],
    attestation: Annotated[
        Path | None, typer.Option(help="The attestation; PATH.attestation.json if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle against its attestation: needs neither network, git, DVC nor the dataset.

    Code 0: signed by this key, and every file is as it was then. Code 1: says what differs.
    """
    from macflow.lineage.attestation import attestation_of, verify
    from macflow.lineage.keys import read_public_key

    found = verify(path, attestation or attestation_of(path), read_public_key(key))
    if as_json:
        print_json({"path": str(path), "key_id": found.key_id, "statement": found.statement})
        return
    print(f"{path}: all {len(found.files)} files are as signed by {found.key_id}")
    print(f"made by commit {found.commit}" if found.commit else "made by a commit that is not named")


def _passphrase() -> bytes:
    if given := os.environ.get(FROM_ENVIRONMENT):
        return given.encode()
    if not sys.stdin.isatty():
        raise DataError(
            f"the key is encrypted; give its passphrase in ${FROM_ENVIRONMENT}, or type it at a terminal"
        )
    return str(typer.prompt("Passphrase", hide_input=True)).encode()


def register(app: typer.Typer) -> None:
    """Add the commands to a group."""
    app.command("keygen")(keygen)
    app.command("sign")(sign)
    app.command("verify-signature")(verify_signature)
