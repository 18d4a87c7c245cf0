"""Ed25519 signatures over a manifest, which has the hashes of all else."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from prune2deploy.artifact.manifest import MANIFEST, SIGNATURE, read_manifest
from prune2deploy.errors import ExportError


def new_key(private: Path) -> Path:
    """Write a new private key (PEM, readable by its owner only), and its public key beside it.

    Returns:
        The public key's file, PRIVATE.pub.

    Raises:
        ExportError: one of the files exists.
    """
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise ExportError(f"{path} exists, and a key is never overwritten. Name another file.")
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return public


def sign(folder: Path, private: Path) -> Path:
    """Sign an artifact; returns the signature's file.

    Raises:
        ExportError: no artifact, or no private Ed25519 key without a password.
    """
    read_manifest(folder)
    try:
        key = serialization.load_pem_private_key(private.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise ExportError(f"{private} cannot be used as a private key: {err}.") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ExportError(
            f"{private} holds a {type(key).__name__}, expected an Ed25519 key. "
            "'prune2deploy sign DIST --new-key FILE' makes one."
        )
    target = folder / SIGNATURE
    target.write_bytes(key.sign((folder / MANIFEST).read_bytes()))
    return target


def signature_problem(folder: Path, public: Path) -> str | None:
    """Say what is wrong with an artifact's signature, or None where it is the key's.

    Raises:
        ExportError: the file holds no public Ed25519 key.
    """
    try:
        key = serialization.load_pem_public_key(public.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as err:
        raise ExportError(f"{public} cannot be used as a public key: {err}.") from err
    if not isinstance(key, Ed25519PublicKey):
        raise ExportError(f"{public} holds a {type(key).__name__}, expected an Ed25519 key.")
    try:
        with (folder / SIGNATURE).open("rb") as file:
            signature = file.read(65)
        key.verify(signature, (folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return "it is not signed, and --key asks for a signature"
    except InvalidSignature:
        return f"{SIGNATURE} is not this key's signature of {MANIFEST}"
    return None
