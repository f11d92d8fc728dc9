"""Signatures of artifacts: ed25519 over the bytes of the manifest, whose digests cover every file.

Digests alone tell accidents; whoever can write a folder writes fitting ones. A signature tells who made the folder.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mtmh.artifacts import MANIFEST, Artifact, kind_of, manifest_bytes, open_artifact, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"

_Key = TypeVar("_Key")


class SignatureError(ValueError):
    """An artifact is not signed, or not with the key that is trusted."""


def write_keys(path: Path) -> Path:
    """Makes a pair of keys as PEM files: the secret one at ``path``, readable by its owner alone.

    Returns:
        The file of the public one, ``path`` with ``.pub`` at its end.

    Raises:
        ValueError: a file is in the place of one of them.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if file.exists():
            raise ValueError(f"{file}: exists; a key is never overwritten")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file_of_key:
        file_of_key.write(secret)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def sign(folder: Path, key: Path) -> Path:
    """Signs an artifact after a look at all its files; an older signature is replaced.

    Args:
        folder: of the artifact.
        key: file of the secret key.

    Returns:
        The file of the signature.

    Raises:
        ValueError: no whole artifact, or no such key.
    """
    signer = _secret_key(key)
    content = manifest_bytes(folder)
    _verify_files(folder, content)
    write_atomically(folder / SIGNATURE, base64.b64encode(signer.sign(content)).decode())
    return folder / SIGNATURE


def verify_signed(folder: Path, key: Path) -> Artifact:
    """Compares the signature of an artifact, the digest of every file, and that there are no other files.

    Args:
        folder: of the artifact.
        key: file of the public key that is trusted.

    Raises:
        SignatureError: no signature, or one of another key or manifest.
        ValueError: no such key; or a file is missing, altered, or not in the manifest.
    """
    trusted = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    content = manifest_bytes(folder)
    try:
        trusted.verify(base64.b64decode((folder / SIGNATURE).read_bytes(), validate=True), content)
    except FileNotFoundError:
        raise SignatureError(f"{folder}: not signed (no {SIGNATURE}); mtmh artifact sign signs it") from None
    except (InvalidSignature, binascii.Error):
        raise SignatureError(f"{folder / SIGNATURE}: not a signature of this manifest by the key of {key}") from None
    return _verify_files(folder, content)


def _verify_files(folder: Path, content: bytes) -> Artifact:
    """The artifact whose manifest has this content, each of its files compared."""
    artifact = open_artifact(folder, kind_of(content, str(folder / MANIFEST)))
    artifact.verify()
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    others = sorted(present - artifact.manifest.files.keys() - {MANIFEST, SIGNATURE})
    if others:
        raise ValueError(f"{folder / others[0]}: not in the manifest, which lists all files of an artifact")
    return artifact


def _secret_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    load = partial(load_pem_private_key, password=None)
    return _key(path, "secret", load, Ed25519PrivateKey)  # type: ignore[type-abstract]


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return _key(path, "public", load_pem_public_key, Ed25519PublicKey)  # type: ignore[type-abstract]


def _key(path: Path, name: str, load: Callable[[bytes], Any], kind: type[_Key]) -> _Key:
    try:
        key = load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: no readable {name} key: {error}") from None
    if not isinstance(key, kind):
        raise ValueError(f"{path}: not an ed25519 key; mtmh artifact keygen makes one")
    return key
