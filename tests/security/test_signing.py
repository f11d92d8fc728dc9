"""Signed artifacts: what the key did not sign is refused, whatever the manifest says of it."""

import json
import subprocess
from pathlib import Path

import pytest
from forging import fit_manifest
from typer.testing import CliRunner

from mtmh.artifacts import MANIFEST, open_artifact, write_artifact
from mtmh.cli import app
from mtmh.signing import SIGNATURE, SignatureError, sign, verify_signed, write_keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with write_artifact(tmp_path / "content", "content", config={}) as writer:
        (writer.folder / "a").write_bytes(b"one")
        (writer.folder / "b").write_bytes(b"two")
    return tmp_path / "content"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_keys(tmp_path / "key")
    return tmp_path / "key"


def test_a_signed_artifact_verifies_and_is_read_as_before(folder: Path, key: Path) -> None:
    before = open_artifact(folder, "content").manifest.digest
    sign(folder, key)
    assert verify_signed(folder, key.with_name("key.pub")).manifest.digest == before
    assert open_artifact(folder, "content").manifest.digest == before
    assert key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("forged", ["file", "file and manifest", "another file", "another key", "no signature", "text"])
def test_what_the_key_did_not_sign_is_refused(folder: Path, key: Path, forged: str, tmp_path: Path) -> None:
    sign(folder, key)
    public, expected = key.with_name("key.pub"), ValueError
    message = {
        "file": "/a: altered since it was written",
        "file and manifest": "not a signature of this manifest by the key of",
        "another file": "/c: not in the manifest",
        "another key": "not a signature of this manifest by the key of",
        "no signature": "not signed",
        "text": "not a signature of this manifest by the key of",
    }[forged]
    if forged.startswith("file"):
        (folder / "a").write_bytes(b"six")
    if forged == "file and manifest":
        signature = (folder / SIGNATURE).read_bytes()
        (folder / SIGNATURE).unlink()
        fit_manifest(folder)
        (folder / SIGNATURE).write_bytes(signature)
        expected = SignatureError
    if forged == "another file":
        (folder / "c").write_bytes(b"")
    if forged == "another key":
        public, expected = write_keys(tmp_path / "other"), SignatureError
    if forged == "no signature":
        (folder / SIGNATURE).unlink()
        expected = SignatureError
    if forged == "text":
        (folder / SIGNATURE).write_text("signed, honestly")
        expected = SignatureError
    with pytest.raises(expected, match=message):
        verify_signed(folder, public)


def test_a_damaged_artifact_is_not_signed(folder: Path, key: Path) -> None:
    (folder / "a").write_bytes(b"six")
    with pytest.raises(ValueError, match="/a: altered"):
        sign(folder, key)
    assert not (folder / SIGNATURE).exists()


def test_keys_are_checked_and_never_overwritten(folder: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key: exists; a key is never overwritten"):
        write_keys(key)
    with pytest.raises(ValueError, match="no readable secret key"):
        sign(folder, key.with_name("key.pub"))
    sign(folder, key)
    with pytest.raises(ValueError, match="no readable public key"):
        verify_signed(folder, key)
    with pytest.raises(ValueError, match="no readable public key"):
        verify_signed(folder, tmp_path / "none")


def test_keys_of_openssl_serve_as_well(folder: Path, tmp_path: Path) -> None:
    for command in ("genpkey -algorithm ed25519 -out secret.pem", "pkey -in secret.pem -pubout -out public.pem"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    sign(folder, tmp_path / "secret.pem")
    verify_signed(folder, tmp_path / "public.pem")
    subprocess.run(["openssl", "genrsa", "-out", "rsa.pem", "2048"], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(ValueError, match=r"rsa\.pem: not an ed25519 key"):
        sign(folder, tmp_path / "rsa.pem")


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["artifact", "keygen", str(tmp_path / "key")]).exit_code == 0
    assert run(app, ["artifact", "sign", str(folder), "--key", str(tmp_path / "key")]).exit_code == 0
    result = run(app, ["artifact", "verify", str(folder), "--key", str(tmp_path / "key.pub")])
    assert result.exit_code == 0
    assert "2 files as written" in result.output
    (folder / "b").write_bytes(b"six")
    failed = run(app, ["artifact", "verify", str(folder), "--key", str(tmp_path / "key.pub")])
    assert isinstance(failed.exception, ValueError)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_a_manifest_names_no_files_outside_of_its_folder(folder: Path, name: str) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    tree["files"][name] = tree["files"]["a"]
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="is not the name of a file in the folder"):
        open_artifact(folder, "content")
