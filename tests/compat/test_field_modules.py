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

    def program(self, name: str, body: str) -> None:
        """A shell program for the modules, before all others on PATH."""
        path = self.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nset -eu\n{body}\n")
        path.chmod(0o755)

    def install(self, kind: str, *files: Path, meta_data: str = "") -> payload.Payload:
        """Make an artifact and take it in, up to and with ArtifactInstall."""
        artifact = self.directory / "v2.mender"
        argv = ["mender-artifact", "write", "module-image", "-T", kind, "-t", "virt64", "-n", "v2"]
        if meta_data:
            (self.directory / "meta-data").write_text(meta_data)
            argv += ["-m", str(self.directory / "meta-data")]
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


def test_deb(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a root file system of its own, by the variable that dpkg reads for it."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg")
    root, package = tmp_path / "root", tmp_path / "package"
    for folder in ("info", "updates"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (package / "DEBIAN").mkdir(parents=True)
    (package / "etc").mkdir()
    (package / "etc/app.conf").write_text("new")
    (package / "DEBIAN/control").write_text(
        "Package: app\nVersion: 2\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: app\n"
    )
    built = field.payload_file("app.deb", "")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", package, built], check=True, capture_output=True
    )
    monkeypatch.setenv("DPKG_ROOT", str(root))
    module = field.install("deb", built)
    assert (root / "etc/app.conf").read_text() == "new"
    assert "Update Module output (stdout): Setting up app (2) ..." in field.stream.getvalue()
    finish(module)


# What of docker the module calls: ps -q, stop, start, pull, run; `running` has the containers.
DOCKER = """
running=RUNNING
case "$1" in
ps) cat "$running" ;;
stop) shift; for each; do sed -i "/^$each\\$/d" "$running"; done ;;
start) shift; for each; do echo "$each" >>"$running"; done ;;
pull) echo "pulled $2" ;;
run) shift; for each; do :; done; echo "new-$each" >>"$running"; echo "run $*" ;;
esac
"""


def test_docker_and_back(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module unmodified; docker itself is a shell program that keeps the list of containers."""
    if shutil.which("jq") is None:
        pytest.skip("the docker module needs jq")
    running = tmp_path / "running"
    running.write_text("old-web\nold-db\n")
    field.program("docker", DOCKER.replace("RUNNING", str(running)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    module = field.install("docker", meta_data='{"containers": ["web", "db"], "run_args": "-p 80:80"}')
    assert running.read_text().split() == ["new-web", "new-db"]
    assert "Update Module output (stdout): run -dt -p 80:80 web" in field.stream.getvalue()
    assert module.query("SupportsRollback") == "Yes"
    assert module.query("NeedsArtifactReboot") == "No"
    module.call("ArtifactRollback")
    assert sorted(running.read_text().split()) == ["old-db", "old-web"]
    module.cleanup()


def test_docker_where_there_is_none(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sh", "mender-artifact"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "few"))
    with pytest.raises(PayloadError, match=r"update module \S+/v3/docker: Download exited with 1"):
        field.install("docker", meta_data='{"containers": []}')
    assert "Must have docker installed" in field.stream.getvalue()


def test_no_such_module(field: Field) -> None:
    with pytest.raises(PayloadError, match="Update Module not found for given artifact type"):
        field.install("no-such-type", field.payload_file("x", ""))
