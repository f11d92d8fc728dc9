"""Verbs of single artifact folders: mtmh artifact keygen, sign, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmh.cli.options import done, say

artifact_app = typer.Typer(no_args_is_help=True, help="Signatures of artifact folders, such as index versions.")

Folder = Annotated[Path, typer.Argument(help="Folder of an artifact, such as runs/demo/mtmh/index/versions/000001.")]


@artifact_app.command("keygen")
def keygen(path: Annotated[Path, typer.Argument(help="Where the secret key goes; the public one beside it.")]) -> None:
    """Makes a pair of ed25519 keys as PEM files."""
    from mtmh.signing import write_keys

    public = write_keys(path)
    done("secret key", path)
    done("public key", public)


@artifact_app.command("sign")
def sign(folder: Folder, key: Annotated[Path, typer.Option(help="File of the secret key.")]) -> None:
    """Signs an artifact, whose files are compared with their digests first."""
    from mtmh.signing import sign as run

    done("signature", run(folder, key))


@artifact_app.command("verify")
def verify(folder: Folder, key: Annotated[Path, typer.Option(help="File of the public key that is trusted.")]) -> None:
    """Compares the signature of an artifact and every file with its digest."""
    from mtmh.signing import verify_signed

    artifact = verify_signed(folder, key)
    say(f"{folder}: signed by the key of {key}, {len(artifact.manifest.files)} files as written")
