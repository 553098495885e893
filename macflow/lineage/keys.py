"""Ed25519 keys as files: PKCS #8 and SubjectPublicKeyInfo in PEM, as openssl reads them too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from macflow.types import DataError

PRIVATE_KEY = "macflow.key"
PUBLIC_KEY = "macflow.pub"


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's DER form."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def make_keys(folder: Path, passphrase: bytes | None) -> tuple[Path, Path, str]:
    """Write a new pair of keys and return both files and the key's id; the private one is its owner's alone.

    Args:
        passphrase: that the private key is encrypted with; None: it is not.

    Raises:
        DataError: where one of the files is there already; nothing is written then.
    """
    private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise DataError(f"{file}: already there, and keys are never overwritten; choose another folder")
    key = Ed25519PrivateKey.generate()
    encryption = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    pem = serialization.Encoding.PEM
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write_new(private, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption), 0o600)
        _write_new(
            public,
            key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
            0o644,
        )
    except OSError as error:
        raise DataError(f"{folder}: the keys cannot be written: {error}") from None
    return private, public, key_id(key.public_key())


def read_private_key(file: Path, passphrase: Callable[[], bytes]) -> Ed25519PrivateKey:
    """Read a private key; `passphrase` is asked only where it is encrypted.

    Raises:
        DataError: where the file is missing, no Ed25519 key in PEM, or the passphrase is wrong.
    """
    content = _read(file)
    try:
        try:
            key = serialization.load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            key = serialization.load_pem_private_key(content, passphrase())
    except ValueError as error:
        raise DataError(
            f"{file}: no private key in PEM, or a wrong passphrase: {_first_line(error)}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{file}: must be an Ed25519 key (received {type(key).__name__})")
    return key


def read_public_key(file: Path) -> Ed25519PublicKey:
    """Read a public key; raises `DataError` where the file is missing or no Ed25519 key in PEM."""
    try:
        key = serialization.load_pem_public_key(_read(file))
    except ValueError as error:
        raise DataError(f"{file}: no public key in PEM: {_first_line(error)}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise DataError(f"{file}: must be an Ed25519 key (received {type(key).__name__})")
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def _write_new(file: Path, content: bytes, mode: int) -> None:
    """Create a file with its final mode from the first moment on; one that is there is an error."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(content)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
