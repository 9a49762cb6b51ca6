# SPDX-License-Identifier: Apache-2.0
"""Update modules as Debian ships them with its mender client, unmodified, fed by mender-artifact.

Each goes the way of an installation: header, file tree, Download, ArtifactInstall, and back.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.debian import unpacked

from update_agent import payload
from update_agent.config import Config
from update_agent.errors import PayloadError
from update_agent.intake import Intake, open_source
from update_agent.log import Log
from update_agent.loop import plain_wait

pytestmark = pytest.mark.skipif(
    shutil.which("mender-artifact") is None, reason="needs mender-artifact (Debian package of that name)"
)


class Field:
    """A device with Debian's modules."""

    def __init__(self, directory: Path, data_dir: str) -> None:
        self.directory = directory
        self.config = Config()
        self.config.data_dir = data_dir
        self.config.datastore = str(directory / "store")
        (directory / "store").mkdir()
        (directory / "store/device_type").write_text("device_type=virt64\n")
        self.stream = io.StringIO()
        self.log = Log(stream=self.stream)

    def payload_file(self, name: str, content: str | bytes) -> Path:
        path = self.directory / "payload" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def install(self, kind: str, *files: Path) -> payload.Payload:
        """Make an artifact and take it in, up to and with ArtifactInstall."""
        artifact = self.directory / "v2.mender"
        argv = ["mender-artifact", "write", "module-image", "-T", kind, "-t", "virt64", "-n", "v2"]
        for path in files:
            argv += ["-f", str(path)]
        subprocess.run([*argv, "-o", str(artifact)], check=True, capture_output=True)
        source = open_source(str(artifact), self.config, self.log)
        intake = Intake(source, self.config, self.log, None, plain_wait)  # type: ignore[arg-type]
        intake.accept({"artifact_name": "v1"})
        intake.prepare({"artifact_name": "v1"})
        intake.stream()
        source.close()
        # As after a restart: what the module must know is in the tree.
        module = payload.find(kind, self.config, self.log, None, plain_wait)  # type: ignore[arg-type]
        module.call("ArtifactInstall")
        return module


@pytest.fixture
def field(tmp_path: Path, pytestconfig: pytest.Config) -> Field:
    return Field(tmp_path, f"{unpacked('mender-client', pytestconfig)}/usr/share/mender")


def finish(module: payload.Payload) -> None:
    module.call("ArtifactCommit")
    module.cleanup()


def single_file(field: Field, target: Path, content: bytes) -> payload.Payload:
    return field.install(
        "single-file",
        field.payload_file("dest_dir", f"{target.parent}\n"),
        field.payload_file("filename", f"{target.name}\n"),
        field.payload_file("permissions", "640\n"),
        field.payload_file(target.name, content),
    )


def test_single_file(field: Field, tmp_path: Path) -> None:
    target = tmp_path / "etc" / "app.conf"
    module = single_file(field, target, b"new" * 100_000)
    assert target.read_bytes() == b"new" * 100_000
    assert target.stat().st_mode & 0o777 == 0o640
    assert module.query("NeedsArtifactReboot") == "No"
    assert module.query("SupportsRollback") == "Yes"
    assert module.query("ProvidePayloadFileSizes") == "No"
    finish(module)
    assert not Path(field.config.tree_dir()).exists()


def test_single_file_goes_back(field: Field, tmp_path: Path) -> None:
    target = tmp_path / "etc" / "app.conf"
    target.parent.mkdir()
    target.write_text("old")
    module = single_file(field, target, b"new")
    assert target.read_text() == "new"
    module.call("ArtifactRollback")
    module.call("ArtifactFailure")
    module.cleanup()
    assert target.read_text() == "old"


def test_directory_goes_back(field: Field, tmp_path: Path) -> None:
    target = tmp_path / "app"
    target.mkdir()
    (target / "old").write_text("old")
    source = tmp_path / "source"
    source.mkdir()
    (source / "new").write_text("new")
    archive = tmp_path / "payload" / "update.tar"
    archive.parent.mkdir()
    subprocess.run(["tar", "-cf", archive, "-C", source, "."], check=True)
    module = field.install("directory", archive, field.payload_file("dest_dir", str(target)))
    assert [path.name for path in target.iterdir()] == ["new"]
    module.call("ArtifactRollback")
    module.cleanup()
    assert [path.name for path in target.iterdir()] == ["old"]


def test_script(field: Field, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    module = field.install("script", field.payload_file("hello", f"#!/bin/sh\necho said\necho $0 > {ran}\n"))
    assert ran.read_text().strip() == f"{field.config.tree_dir()}/files/hello"
    assert "Update Module output (stdout): said" in field.stream.getvalue()
    assert module.query("SupportsRollback") == "No"
    finish(module)


def test_script_that_fails(field: Field) -> None:
    with pytest.raises(PayloadError, match=r"update module \S+/v3/script: ArtifactInstall exited with 5"):
        field.install("script", field.payload_file("bad", "#!/bin/sh\nexit 5\n"))


def test_deb_reports_what_dpkg_says(field: Field) -> None:
    with pytest.raises(PayloadError, match=r"modules/v3/deb: ArtifactInstall exited with"):
        field.install("deb", field.payload_file("broken.deb", "not an archive"))
    assert "dpkg: error" in field.stream.getvalue()


def test_no_such_module(field: Field) -> None:
    with pytest.raises(PayloadError, match="Update Module not found for given artifact type"):
        field.install("no-such-type", field.payload_file("x", ""))
