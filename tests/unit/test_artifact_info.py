# SPDX-License-Identifier: Apache-2.0
"""The desk's view of an upload agrees with the device's."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from tests.support.artifacts import COMPRESS, Artifact
from tests.support.hostile import CASES, PAYLOAD

from update_tools.server import artifact_info
from update_tools.server.faults import Unprocessable


@pytest.mark.parametrize("case", CASES)
def test_what_a_device_refuses_is_refused_for_the_same_reason(tmp_path: Path, case: str) -> None:
    make, reason = CASES[case]
    path = tmp_path / "a.mender"
    path.write_bytes(make())
    with pytest.raises(Unprocessable) as caught:
        artifact_info.read(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_a_device_takes_is_read(suffix: str) -> None:
    data = Artifact(compression=suffix, scripts={"ArtifactInstall_Enter_10": b""}).build()
    info, sha256 = artifact_info.read_stream(io.BytesIO(data), len(data))
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert info.compression == {"": "none", ".gz": "gzip", ".xz": "xz", ".zst": "zstd"}[suffix]
    assert info.files == [{"name": "payload.bin", "checksum": hashlib.sha256(PAYLOAD).hexdigest()}]
    assert (info.name, info.payload_type, info.scripts) == (
        "release-2",
        "module",
        ["ArtifactInstall_Enter_10"],
    )
    with pytest.raises(Unprocessable, match=f"has {len(data)} bytes, 5 were announced"):
        artifact_info.read_stream(io.BytesIO(data), 5)
