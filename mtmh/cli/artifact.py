"""Verbs of single artifact folders: mtmh artifact keygen, sign, verify, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmh.cli.options import done, say

artifact_app = typer.Typer(
    no_args_is_help=True, help="Artifact folders, such as index versions: signatures, object storage."
)

Folder = Annotated[Path, typer.Argument(help="Folder of an artifact, such as runs/demo/mtmh/index/versions/000001.")]


Place = Annotated[str, typer.Argument(help="Where versions lie: s3://BUCKET/KEY, gs://, abfs://, hdfs:// or a path.")]


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


@artifact_app.command("push")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an artifact, or an index folder with its versions.")],
    url: Place,
    keep: Annotated[int, typer.Option(min=1, help="Published versions that stay there, this one included.")] = 3,
) -> None:
    """Copies an artifact to object storage, whole or not at all, and publishes it there."""
    from mtmh.index.versions import CURRENT, current_version
    from mtmh.places import any_path
    from mtmh.transfer import push as run

    source = current_version(folder) if (folder / CURRENT).is_file() else folder
    name = run(source, any_path(url), keep=keep)
    say(f"[green]published[/green] {source} at {url}: version {name}")


@artifact_app.command("pull")
def pull(
    url: Place,
    folder: Annotated[Path, typer.Argument(help="Folder of the artifact; an older one of its kind is replaced.")],
    key: Annotated[Path | None, typer.Option(help="File of the public key that must have signed it.")] = None,
) -> None:
    """Copies the artifact that is published on object storage, whole or not at all; nothing if it is there already."""
    from mtmh.places import any_path
    from mtmh.transfer import pull as run

    artifact, is_new = run(any_path(url), folder, trusted_key=key)
    if is_new:
        done(artifact.manifest.kind, folder)
    else:
        say(f"{folder}: as published at {url}")
