# SPDX-License-Identifier: Apache-2.0
"""The smallest artifact that is one: for scenarios, and on purpose not made with the tool that is tested."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAYLOAD_FILE = "payload.txt"
PAYLOAD = b"what the update module gets\n"


def build(
    name: str,
    *,
    device_type: str,
    payload_type: str | None,
    scripts: Mapping[str, bytes],
    payload: bytes = PAYLOAD,
    type_info: Mapping[str, object] | None = None,
    is_broken: bool = False,
) -> bytes:
    """An artifact of format 3 with one payload file, or none for the payload type None.

    `type_info`: more of it than the type. `is_broken`: the header is not the one the manifest names.
    """
    header_info = {
        "payloads": [{"type": payload_type}],
        "artifact_provides": {"artifact_name": name},
        "artifact_depends": {"device_type": [device_type]},
    }
    members = [("header-info", json.dumps(header_info).encode())]
    members += [(f"scripts/{script}", content) for script, content in scripts.items()]
    members.append(
        ("headers/0000/type-info", json.dumps({"type": payload_type, **(type_info or {})}).encode())
    )
    version = b'{"format":"mender","version":3}'
    files = [] if payload_type is None else [(PAYLOAD_FILE, payload)]
    header = _tar(members)
    digests = {"version": version, "header.tar": header}
    digests.update({f"data/0000/{file}": content for file, content in files})
    manifest = "".join(f"{hashlib.sha256(digests[key]).hexdigest()}  {key}\n" for key in sorted(digests))
    if is_broken:
        header = _tar([("header-info", json.dumps(header_info).encode() + b" "), *members[1:]])
    return _tar(
        [
            ("version", version),
            ("manifest", manifest.encode()),
            ("header.tar", header),
            ("data/0000.tar", _tar(files)),
        ]
    )


def _tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o600
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()
