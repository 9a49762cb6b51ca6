# SPDX-License-Identifier: Apache-2.0
"""Uploads that go on after a broken line: the tus protocol, version 1.0 (core, creation, termination).

    POST  …/artifacts/uploads   Upload-Length, Upload-Metadata: sha256 BASE64,description BASE64   -> Location
    HEAD  Location                                                        -> Upload-Offset: what is kept
    PATCH Location   Upload-Offset, body from there on                    -> Upload-Offset

The PATCH that brings the last byte answers when the artifact was looked at and published, with its address
in Location; from then on HEAD says the same. Creating an upload whose sha256 is already an artifact's gives
that artifact, and nothing need be sent.
"""

from __future__ import annotations

import base64
import binascii
import re
import time

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from update_tools.server.bodies import chunks
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Refusal, TooLarge
from update_tools.server.intake import Taker

router = APIRouter(prefix="/api/management/v1/deployments/artifacts", tags=["management"])

ARTIFACTS = "/api/management/v1/deployments/artifacts"
VERSION = "1.0.0"
MAX_BYTES = 64 << 30
FLUSH_BYTES = 1 << 20
COMMIT_BYTES = 64 << 20  # what a killed server costs at most
COMMIT_S = 5.0


@router.options("/uploads", status_code=204)
def capabilities() -> Response:
    """What of tus there is."""
    headers = {
        "tus-version": VERSION,
        "tus-extension": "creation,termination",
        "tus-max-size": str(MAX_BYTES),
    }
    return _answer(204, **headers)


@router.post("/uploads", status_code=201)
def create(request: Request) -> Response:
    """Begin an upload of `Upload-Length` bytes."""
    _check_version(request)
    length = _number(request, "upload-length")
    if not 0 < length <= MAX_BYTES:
        raise TooLarge(f"an artifact has 1 to {MAX_BYTES} bytes")
    metadata = _metadata(request.headers.get("upload-metadata", ""))
    sha256 = metadata.get("sha256", "").lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BadRequest("sha256 in Upload-Metadata must be 64 hex digits")
    intake = house_of(request).intake
    same = intake.with_sha256(sha256) if sha256 else None
    if same is not None:
        return _answer(201, location=f"{ARTIFACTS}/uploads/{same.id}", upload_offset=str(same.size_bytes))
    upload_id = intake.begin(
        who_of(request),
        is_resumable=True,
        size_bytes=length,
        sha256=sha256,
        description=metadata.get("description", ""),
    )
    return _answer(201, location=f"{ARTIFACTS}/uploads/{upload_id}", upload_offset="0")


@router.head("/uploads/{upload_id}")
def progress(request: Request, upload_id: str) -> Response:
    """How far it is; of a finished one, where its artifact is."""
    intake = house_of(request).intake
    done = intake.artifact(upload_id)
    if done is not None:
        size = str(done.size_bytes)
        return _answer(200, upload_offset=size, upload_length=size, location=f"{ARTIFACTS}/{done.id}")
    upload = intake.find(upload_id)
    return _answer(200, upload_offset=str(upload.offset_bytes), upload_length=str(upload.size_bytes))


@router.patch("/uploads/{upload_id}", status_code=204)
async def append(request: Request, upload_id: str) -> Response:
    """More bytes, from `Upload-Offset` on. What arrived before the line broke is kept."""
    _check_version(request)
    if request.headers.get("content-type", "") != "application/offset+octet-stream":
        raise Refusal("the body must be application/offset+octet-stream", status=415)
    offset = _number(request, "upload-offset")
    intake, who = house_of(request).intake, who_of(request)
    done = await run_in_threadpool(intake.artifact, upload_id)
    if done is None:
        upload = await run_in_threadpool(intake.find, upload_id)
        size = upload.size_bytes or 0
        taker = await run_in_threadpool(intake.take, upload_id, offset)
        try:
            offset = await _append(request, taker, offset, size)
        finally:
            await run_in_threadpool(taker.close)
        if offset < size:
            return _answer(204, upload_offset=str(offset))
        done = await run_in_threadpool(intake.finish, upload_id, who)
    size_text = str(done.size_bytes)
    return _answer(204, upload_offset=size_text, location=f"{ARTIFACTS}/{done.id}")


@router.delete("/uploads/{upload_id}", status_code=204)
def give_up(request: Request, upload_id: str) -> Response:
    """Give an unfinished upload up."""
    intake = house_of(request).intake
    intake.find(upload_id)
    intake.discard(upload_id)
    return _answer(204)


async def _append(request: Request, taker: Taker, offset: int, size: int) -> int:
    """The body into the store; returns how far the upload is now."""
    waiting = bytearray()
    received = committed = offset
    committed_at = time.monotonic()
    try:
        async for chunk in chunks(request):
            received += len(chunk)
            if received > size:
                raise TooLarge(f"the upload was announced with {size} bytes")
            waiting += chunk
            if len(waiting) >= FLUSH_BYTES:
                await run_in_threadpool(taker.write, bytes(waiting))
                waiting.clear()
                moment = time.monotonic()
                if received - committed >= COMMIT_BYTES or moment - committed_at >= COMMIT_S:
                    committed = await run_in_threadpool(taker.commit)
                    committed_at = moment
    except TooLarge:
        raise
    except Refusal:  # the sender hung up or fell asleep: what came until then counts
        await run_in_threadpool(taker.write, bytes(waiting))
        await run_in_threadpool(taker.commit)
        raise
    await run_in_threadpool(taker.write, bytes(waiting))
    return await run_in_threadpool(taker.commit, is_last=received == size)


def _answer(status: int, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(
        status_code=status, headers={"tus-resumable": VERSION, "cache-control": "no-store", **named}
    )


def _check_version(request: Request) -> None:
    wanted = request.headers.get("tus-resumable", VERSION)
    if wanted != VERSION:
        raise Refusal(f"tus {wanted[:20]} is not spoken here", hint=f"use {VERSION}", status=412)


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadRequest(f"the header {name} must be a number of bytes")
    return int(text)


def _metadata(header: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in header.split(","):
        name, _, packed = pair.strip().partition(" ")
        try:
            found[name] = base64.b64decode(packed, validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"{name[:40]!r} in Upload-Metadata is not base64 of text") from error
    return found
