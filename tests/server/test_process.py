# SPDX-License-Identifier: Apache-2.0
"""The server as a process: killed, it keeps what it acknowledged; full disks and large files do no harm."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.server.fake_device import FakeDevice
from typer.testing import CliRunner

from update_agent.errors import UpdateError
from update_tools.server import cli
from update_tools.server.run import start


def test_killed_after_a_204(tmp_path: Path, write_artifact: Callable[..., Path]) -> None:
    data = tmp_path / "data"
    with start(data, auto_accept=True) as first:
        management = first.management()
        management.upload(write_artifact("release-2"))
        device = FakeDevice(first.url, "52:54:00:00:00:01")
        device.authorize()
        control_map = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}
        deployment_id = management.deploy("survives", "release-2", map=control_map)
        link = device.poll().json()["artifact"]["source"]["uri"]
        assert device.report(deployment_id, "downloading", "at 40 %").status_code == 204
        first.kill()
        assert not first.is_running()

    (data / "incoming" / "half").write_bytes(b"an upload that was never acknowledged")
    (data / "artifacts" / "half.mender").write_bytes(b"the same, a moment later")
    with start(data, first.port) as second:
        assert second.url == first.url
        part = second.management().devices(deployment_id)[0]
        assert (part["status"], part["substate"]) == ("downloading", "at 40 %")
        again = device.poll()
        assert again.json()["id"] == deployment_id, "the token outlives the restart"
        assert again.json()["update_control_map"]["states"] == control_map["states"]
        assert device.http.get(link).content == write_artifact("release-2").read_bytes()
        assert not (data / "incoming" / "half").exists()
        assert not (data / "artifacts" / "half.mender").exists()
        assert len(list((data / "artifacts").iterdir())) == 1


def test_killed_in_the_middle_of_everything(tmp_path: Path, write_artifact: Callable[..., Path]) -> None:
    """A device reports, an upload comes in pieces, another as a form: what was acknowledged stays."""
    data = tmp_path / "data"
    artifact = write_artifact("large", compression="none", payload=random.Random(3).randbytes(24 << 20))
    content = artifact.read_bytes()
    uploads = "/api/management/v1/deployments/artifacts/uploads"
    with start(data, auto_accept=True) as first:
        http = httpx.Client(base_url=first.url, headers={"Authorization": f"Bearer {first.token}"})
        first.management().upload(write_artifact("release-2"))
        device = FakeDevice(first.url, "52:54:00:00:00:01")
        device.authorize()
        deployment_id = first.management().deploy("killed", "release-2")
        device.poll()
        place = http.post(uploads, headers={"Upload-Length": str(len(content))}).headers["location"]
        acknowledged = {"report": -1, "upload": 0}
        is_busy = threading.Event()

        def report() -> None:
            with contextlib.suppress(httpx.TransportError):
                for number in itertools.count():
                    assert device.report(deployment_id, "downloading", str(number)).status_code == 204
                    acknowledged["report"] = number
                    if number > 5:
                        is_busy.set()

        def upload() -> None:
            headers = {"Content-Type": "application/offset+octet-stream"}
            with contextlib.suppress(httpx.TransportError):
                while acknowledged["upload"] < len(content) - (1 << 20):
                    offset = acknowledged["upload"]
                    piece = content[offset : offset + (1 << 20)]
                    sent = http.patch(place, headers={**headers, "Upload-Offset": str(offset)}, content=piece)
                    acknowledged["upload"] = int(sent.headers["upload-offset"])

        def form() -> None:
            def body() -> Iterator[bytes]:
                yield b'--x\r\nContent-Disposition: form-data; name="artifact"; filename="x"\r\n\r\n'
                while True:
                    yield bytes(65536)

            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            with contextlib.suppress(httpx.TransportError):
                http.post(uploads.removesuffix("/uploads"), headers=headers, content=body(), timeout=60)

        with ThreadPoolExecutor(3) as pool:
            works = [pool.submit(work) for work in (report, upload, form)]
            assert is_busy.wait(60)
            first.kill()
        for done in works:
            done.result()

    with start(data, first.port) as second:
        http = httpx.Client(base_url=second.url, headers={"Authorization": f"Bearer {second.token}"})
        (part,) = second.management().devices(deployment_id)
        assert int(part["substate"]) >= acknowledged["report"]
        offset = int(http.head(place).headers["upload-offset"])
        assert offset >= acknowledged["upload"]
        (kept,) = (data / "incoming").iterdir()
        assert kept.name == place.rpartition("/")[2], "nobody can go on with the form"
        headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        done = http.patch(place, headers=headers, content=content[offset:], timeout=60)
        assert done.status_code == 204, done.text
        assert http.get(done.headers["location"]).json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_one_server_per_folder(tmp_path: Path) -> None:
    with start(tmp_path), pytest.raises(UpdateError, match="in use by another server"):
        start(tmp_path)


def test_the_key_is_private(tmp_path: Path) -> None:
    with start(tmp_path / "data"):
        assert (tmp_path / "data" / "server.key").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "data").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ((), "WARNING: passwords and tokens go over the network unencrypted"),
        (("--trust-proxy", "127.0.0.1"), ""),
        (("--insecure-no-login",), "WARNING: without a login, everyone who reaches 0.0.0.0"),
    ],
    ids=str,
)
def test_listening_for_everyone_warns_when_that_is_unsafe(
    tmp_path: Path, options: tuple[str, ...], warning: str
) -> None:
    with start(tmp_path, host="0.0.0.0", options=options) as server:
        port = server.port
        status = httpx.get(f"http://127.0.0.1:{port}/api/management/v2/devauth/devices").status_code
        assert status == (200 if "--insecure-no-login" in options else 401)
        said = server.log.read_text()
    assert (warning in said) if warning else ("WARNING" not in said)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--public-url", "ftp://x"), "not an http or https address"),
        (("--tls-cert", "x.pem"), "go together"),
        (("--tls-cert", "no.pem", "--tls-key", "no.pem"), "cannot be read"),
        (("--trust-proxy", "proxy.example"), "no address or network"),
        (("--database-url", "mysql://x"), "is not known"),
        (("--database-url", "postgresql+psycopg://u:secret@127.0.0.1:1/x"), "cannot be opened"),
    ],
    ids=str,
)
def test_command_lines_that_cannot_work(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    command = ["--data", str(tmp_path / "data"), "--port", "0", *options]
    answer = CliRunner().invoke(cli.app, command)
    assert isinstance(answer.exception, UpdateError)
    assert reason in str(answer.exception)
    assert "secret" not in str(answer.exception)


def test_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from update_tools.server.run import start;"
        "print(start(pathlib.Path(sys.argv[1])).pid, flush=True); os._exit(0)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-c", program, str(tmp_path / "data")]
    pid = int(subprocess.run(argv, capture_output=True, check=True, env=environment, timeout=60).stdout)
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # already gone
    assert select.select([watched], [], [], 30)[0], "the server is still there"
    os.close(watched)


def test_stops_in_good_order(tmp_path: Path) -> None:
    server = start(tmp_path)
    server.stop()
    assert server.exit_code in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()


def test_disk_full(tmp_path: Path, write_artifact: Callable[..., Path]) -> None:
    """A data folder that is too small: uploads are refused with the reason, and go on once there is room."""
    data = tmp_path / "data"
    if shutil.which("mount") is None or _mount(data, "4m"):
        pytest.skip("mounting a small tmpfs needs root")
    artifact = write_artifact("fills", compression="none", payload=random.Random(4).randbytes(6 << 20))
    path = "/api/management/v1/deployments/artifacts"
    try:
        with start(data) as server:
            http = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"})
            form = http.post(path, files={"artifact": ("x", artifact.read_bytes())})
            assert form.status_code == 507
            assert "no room for the artifact" in form.json()["error"]
            assert list((data / "incoming").iterdir()) == []
            with pytest.raises(UpdateError, match=r"507 .*no room"):
                server.management().upload(artifact)
            (kept,) = (data / "incoming").iterdir()
            place = f"{path}/uploads/{kept.name}"
            offset = http.head(place).headers["upload-offset"]
            assert kept.stat().st_size == int(offset), "what was not acknowledged takes up no room"
            assert http.get(path).json() == []
            subprocess.run(["mount", "-o", "remount,size=64m", data], check=True)
            headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": offset}
            done = http.patch(place, headers=headers, content=artifact.read_bytes()[int(offset) :])
            assert done.status_code == 204, done.text
            assert [entry["name"] for entry in http.get(path).json()] == ["fills"]
    finally:
        subprocess.run(["umount", data], check=True)


def test_a_large_artifact_is_never_in_memory(tmp_path: Path) -> None:
    if shutil.which("mender-artifact") is None:
        pytest.skip("mender-artifact is missing (Debian package mender-artifact)")
    image, artifact = tmp_path / "image", tmp_path / "large.mender"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    argv = ["mender-artifact", "--compression", "none", "write", "rootfs-image", "--no-progress"]
    argv += ["-t", "virt64", "-n", "large", "-f", str(image), "-o", str(artifact)]
    subprocess.run(argv, check=True, capture_output=True)
    with start(tmp_path / "data", auto_accept=True) as server:
        management = server.management()
        before = _peak_kib(server.pid)
        management.upload(artifact)
        device = FakeDevice(server.url, "52:54:00:00:00:01")
        device.authorize()
        management.deploy("large", "large")
        link = device.poll().json()["artifact"]["source"]["uri"]
        with device.http.stream("GET", link) as answer:
            received = sum(len(chunk) for chunk in answer.iter_raw())
        assert received == artifact.stat().st_size
        assert _peak_kib(server.pid) - before < 64 << 10


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _mount(folder: Path, size: str) -> int:
    folder.mkdir(exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return subprocess.run(argv, capture_output=True, check=False).returncode
