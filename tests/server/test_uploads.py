# SPDX-License-Identifier: Apache-2.0
"""Artifacts on their way in: good ones kept, broken ones refused with the reason, nothing left behind."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.conftest import ThreadServer

from update_tools.server import artifact_info
from update_tools.server.client import Management
from update_tools.server.faults import Refusal

ARTIFACTS = "/api/management/v1/deployments/artifacts"


def upload(server: ThreadServer, content: bytes, **fields: str) -> httpx.Response:
    return server.http().post(ARTIFACTS, data=fields, files={"artifact": ("x.mender", content)}, timeout=30)


def left_overs(server: ThreadServer) -> list[str]:
    return [path.name for folder in ("incoming", "artifacts") for path in (server.data / folder).iterdir()]


def tar(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("compression", ["none", "gzip", "lzma"])
def test_what_is_read_from_an_artifact(
    server: ThreadServer, management: Management, write_artifact: Callable[..., Path], compression: str
) -> None:
    path = write_artifact("release-2", compression=compression)
    artifact_id = management.upload(path, description="nightly")
    entry = server.http().get(f"{ARTIFACTS}/{artifact_id}").json()
    assert entry["name"] == "release-2"
    assert entry["description"] == "nightly"
    assert entry["device_types_compatible"] == ["virt64"]
    assert entry["updates"][0]["type_info"] == {"type": "rootfs-image"}
    assert entry["updates"][0]["files"][0]["name"] == "release-2.ext4"
    assert entry["scripts"] == ["ArtifactInstall_Enter_10_check-disk"]
    assert entry["artifact_provides"]["rootfs-image.version"] == "release-2"
    assert entry["size"] == path.stat().st_size
    stored = server.data / "artifacts" / f"{artifact_id}.mender"
    assert stored.read_bytes() == path.read_bytes()


def test_refused_uploads_leave_nothing(
    server: ThreadServer, management: Management, write_artifact: Callable[..., Path]
) -> None:
    good = write_artifact("release-2", compression="none").read_bytes()
    version = ("version", b'{"format":"mender","version":3}')
    table = {
        "empty": (b"", "the file is empty"),
        "text": (b"hello" * 1000, "not a tar archive"),
        "cut in the payload": (good[:-20_000], "cut off at byte"),
        "cut in the header": (good[:3_000], "cut off at byte"),
        "another tar": (tar(("readme", b"x")), "'readme' where version belongs"),
        "path traversal": (tar(version, ("../../etc/passwd", b"x")), "names must stay inside"),
        "wrong order": (tar(("manifest", b""), version), "'manifest' where version belongs"),
        "version 2": (tar(("version", b'{"format":"mender","version":2}')), "old format version 2"),
        "version is not JSON": (tar(("version", b"{")), "not valid JSON"),
        "only a version": (tar(version), "ends where manifest belongs"),
        "manifest is not one": (
            tar(version, ("manifest", b"rubbish\n"), ("header.tar", b"")),
            "is not '<sha256>  <name>'",
        ),
        "checksum": (good.replace(b"  header.tar", b"  heuder.tar"), "which is no part of an artifact"),
    }
    for name, (content, reason) in table.items():
        answer = upload(server, content)
        assert answer.status_code == 422, name
        assert answer.json()["request_id"], name
        assert re.search(reason, answer.json()["error"]), (name, answer.json()["error"])
    assert left_overs(server) == []
    assert server.http().get(ARTIFACTS).json() == []


def test_traversal_in_names_stays_text(server: ThreadServer, write_artifact: Callable[..., Path]) -> None:
    content = write_artifact("release-2").read_bytes()
    answer = server.http().post(
        ARTIFACTS, files={"artifact": ("../../../../tmp/owned.mender", content)}, timeout=30
    )
    assert answer.status_code == 201
    names = left_overs(server)
    assert names == [answer.headers["location"].rpartition("/")[2] + ".mender"]


def test_form_mistakes(server: ThreadServer, write_artifact: Callable[..., Path]) -> None:
    content = write_artifact("release-2").read_bytes()
    http = server.http()
    assert http.post(ARTIFACTS, json={}).status_code == 415
    assert http.post(ARTIFACTS, files={"other": b"x"}).status_code == 400
    assert upload(server, content, size="1").status_code == 422
    assert upload(server, content, description="x" * 100_000).status_code == 413
    boundary = {"Content-Type": "multipart/form-data; boundary=xyz"}
    assert http.post(ARTIFACTS, content=b"--xyz\r\n", headers=boundary).status_code == 400
    assert http.post(ARTIFACTS, content=b"rubbish", headers=boundary).status_code == 400
    assert left_overs(server) == []


def test_delete(server: ThreadServer, management: Management, write_artifact: Callable[..., Path]) -> None:
    artifact_id = management.upload(write_artifact("release-2"))
    assert server.http().delete(f"{ARTIFACTS}/{artifact_id}").status_code == 204
    assert left_overs(server) == []
    assert server.http().delete(f"{ARTIFACTS}/{artifact_id}").status_code == 404


def header_artifact(header_info: object, type_info: object, *extra: tuple[str, bytes]) -> bytes:
    """An artifact with right checksums around a header of the test's choice."""
    version = b'{"format":"mender","version":3}'
    header = tar(
        ("header-info", json.dumps(header_info).encode()),
        *extra,
        ("headers/0000/type-info", json.dumps(type_info).encode()),
    )
    manifest = f"{hashlib.sha256(header).hexdigest()}  header.tar\n"
    manifest += f"{hashlib.sha256(version).hexdigest()}  version\n"
    return tar(
        ("version", version),
        ("manifest", manifest.encode()),
        ("header.tar", header),
        ("data/0000.tar", tar()),
    )


GOOD_HEADER = {
    "payloads": [{"type": "my-module"}],
    "artifact_provides": {"artifact_name": "a"},
    "artifact_depends": {"device_type": ["virt64"]},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payloads": []}, "exactly one payload"),
        ({"payloads": [{"type": ""}]}, "expected a string with text"),
        ({"artifact_provides": {}}, "artifact_name"),
        ({"artifact_provides": {"artifact_name": "a\nb"}}, "control characters"),
        ({"artifact_depends": {"device_type": []}}, "device_type"),
        ({"artifact_depends": {"device_type": [1]}}, "device_type"),
        ({"artifact_depends": []}, "expected an object"),
    ],
    ids=str,
)
def test_header_rules(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "x.mender"
    path.write_bytes(header_artifact(GOOD_HEADER, {"type": "my-module"}))
    assert artifact_info.read(path).payload_type == "my-module"
    path.write_bytes(header_artifact({**GOOD_HEADER, **change}, {"type": "my-module"}))
    with pytest.raises(Refusal, match=reason):
        artifact_info.read(path)


@pytest.mark.parametrize(
    "name",
    [
        "scripts/../../x",
        "scripts/Download_Enter_00",
        "scripts/ArtifactCommit_Enter_1",
        "scripts/ArtifactCommit_Enter_10_\udcff",
    ],
)
def test_script_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.mender"
    path.write_bytes(header_artifact(GOOD_HEADER, {"type": "my-module"}, (name, b"")))
    with pytest.raises(Refusal, match=r"state script|stay inside|not UTF-8"):
        artifact_info.read(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_artifacts_are_read_or_refused(
    tmp_path: Path, write_artifact: Callable[..., Path], seed: int
) -> None:
    chance = random.Random(seed)
    compression = chance.choice(["none", "gzip", "lzma"])
    content = bytearray(write_artifact("release-2", compression=compression).read_bytes())
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(min(len(content), 8192))
        match chance.randrange(3):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                del content[place : place + chance.randrange(600)]
            case _:
                content[place:place] = bytes(chance.randrange(600))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with suppress(Refusal):  # anything else would be a 500
        artifact_info.read(path)
