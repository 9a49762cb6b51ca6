# SPDX-License-Identifier: Apache-2.0
"""Artifact downloads by signed link, with Range, ETag and If-Range (RFC 9110).

From an S3 store they are streamed through this server: a device reaches and trusts this server already, its
links keep working for as long as they say whatever happens to the store's credentials, and the ETag is the
artifact's SHA-256. With --direct-links devices get the store's own presigned links instead, and the bytes
pass by this server; for that every device must reach the store and trust its certificate.
"""

from __future__ import annotations

import re
from itertools import chain

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from update_tools.server.db import Artifact
from update_tools.server.device_api import house_of
from update_tools.server.faults import NotFound

router = APIRouter(prefix="/api/artifacts", tags=["device"])

KIND = "application/vnd.mender-artifact"


@router.get("/{artifact_id}/download", response_class=Response)
@router.head("/{artifact_id}/download", include_in_schema=False)
def download(request: Request, artifact_id: str, expires: str = "", signature: str = "") -> Response:
    """The artifact's bytes, or a part of them, without a token."""
    house = house_of(request)
    house.check_link(artifact_id, expires, signature)
    with house.db.read() as session:
        artifact = session.get(Artifact, artifact_id)
    if artifact is None:
        raise NotFound("the artifact was removed from the server")
    headers = {
        "etag": f'"{artifact.sha256}"',
        "accept-ranges": "bytes",
        "cache-control": "private, no-transform",
    }
    path = house.store.path(artifact.id)
    if path is not None:
        return FileResponse(path, media_type=KIND, headers=headers)
    wanted = range_of(request, artifact.size_bytes, headers["etag"])
    if wanted is None:
        start, length, status = 0, artifact.size_bytes, 200
    elif not wanted:
        headers["content-range"] = f"bytes */{artifact.size_bytes}"
        return Response(status_code=416, headers=headers)
    else:
        start, length, status = wanted.start, len(wanted), 206
        headers["content-range"] = f"bytes {start}-{wanted.stop - 1}/{artifact.size_bytes}"
    headers["content-length"] = str(length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=KIND)
    body = house.store.read(artifact.id, start, length)
    first = next(body, b"")  # a store that does not answer is told before the answer begins
    return StreamingResponse(chain((first,), body), status_code=status, headers=headers, media_type=KIND)


def range_of(request: Request, size: int, etag: str) -> range | None:
    """The bytes asked for: None for all of them, an empty range if there are none such.

    Several ranges at once, and what is no range, get the whole, as RFC 9110 allows.
    """
    condition = request.headers.get("if-range")
    if condition is not None and condition != etag:
        return None
    found = re.fullmatch(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", request.headers.get("range", ""))
    if found is None or found[0].strip() == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        if not last:
            return None
        return range(max(size - int(last), 0), size)
    stop = min(int(last) + 1, size) if last else size
    if last and int(last) < int(first):
        return None
    return range(int(first), max(stop, int(first)))
