# SPDX-License-Identifier: Apache-2.0
"""Artifacts on their way in: multipart parts straight to disk, then looked at, then in their place.

An upload is acknowledged when file and database entry are on the medium. A process killed before that leaves
a file in `incoming/` that the next start removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from update_tools.server import artifact_info
from update_tools.server.bodies import chunks
from update_tools.server.db import Artifact, new_id
from update_tools.server.faults import BadRequest, Conflict, Refusal, TooLarge, Unprocessable
from update_tools.server.settings import House

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_LIMIT_BYTES = 64 << 10
FIELDS_LIMIT = 32


@dataclass
class Form:
    """A multipart form: small fields in memory, the one file on disk."""

    fields: dict[str, str] = field(default_factory=dict)
    file_bytes: int = 0
    sha256: str = ""
    has_file: bool = False


async def receive(request: Request, house: House, check: Callable[[Form], None]) -> Artifact:
    """Take an uploaded artifact and return its entry. `check` sees the form before anything is kept.

    Raises Refusal: 400 not a multipart form, 409 the release exists for one of the device types,
    422 not a usable artifact, 507 no room.
    """
    artifact_id = new_id()
    beside = house.incoming / artifact_id
    try:
        form = await _to_disk(request, beside)
        check(form)
        if not form.has_file:
            raise BadRequest("the form has no file field named artifact")
        return await run_in_threadpool(_keep, house, artifact_id, beside, form)
    except OSError as error:
        raise _no_room(error) from error
    finally:
        beside.unlink(missing_ok=True)


async def _to_disk(request: Request, path: Path) -> Form:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal("an upload is a multipart/form-data form", status=415)
    with path.open("wb") as file:
        sink = _Sink(file)
        try:
            parser = MultipartParser(options[b"boundary"], sink.callbacks())
            async for chunk in chunks(request):
                parser.write(chunk)
                if sink.has_much():
                    await run_in_threadpool(sink.flush)
        except FormParserError as error:
            raise BadRequest(f"the form is broken: {error}") from error
        if not sink.is_complete:
            raise BadRequest("the form ends in the middle")
        await run_in_threadpool(sink.finish)
    return sink.form


def _keep(house: House, artifact_id: str, beside: Path, form: Form) -> Artifact:
    info = artifact_info.read(beside)
    announced = form.fields.get("size", "")
    if announced and announced != str(form.file_bytes):
        raise Unprocessable(f"the form says size {announced[:20]}, the artifact has {form.file_bytes} bytes")
    entry = Artifact(
        id=artifact_id,
        name=info.name,
        device_types=info.device_types,
        payload_type=info.payload_type,
        is_signed=info.is_signed,
        info=info.as_dict(),
        description=form.fields.get("description", "")[:4096],
        size_bytes=form.file_bytes,
        sha256=form.sha256,
    )
    place = house.artifact_path(artifact_id)
    try:
        with house.db.write() as session:
            for other in session.scalars(select(Artifact).where(Artifact.name == info.name)):
                both = sorted(set(other.device_types) & set(info.device_types))
                if both:
                    raise Conflict(f"release {info.name!r} already has an artifact for {', '.join(both)}")
            os.rename(beside, place)
            folder = os.open(house.artifacts, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            session.add(entry)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return entry


class _Sink:
    """The parser's callbacks: sorts parts into fields and the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.form = Form()
        self.is_complete = False
        self._file = file
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field: str | None = None
        self._text = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def has_much(self) -> bool:
        return len(self._waiting) >= 1 << 20

    def flush(self) -> None:
        self._hash.update(self._waiting)
        self._file.write(self._waiting)
        self.form.file_bytes += len(self._waiting)
        self._waiting.clear()

    def finish(self) -> None:
        self.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.form.sha256 = self._hash.hexdigest()

    def _part_begin(self) -> None:
        self._headers = {}
        self._text.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "artifact":
            if self.form.has_file:
                raise BadRequest("one artifact per upload")
            self.form.has_file = True
            self._field = None
            return
        if not name or len(self.form.fields) >= FIELDS_LIMIT:
            raise BadRequest("the form has a part without a name, or too many parts")
        self._field = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._waiting += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_LIMIT_BYTES:
            raise TooLarge(f"form field {self._field[:80]!r} is longer than {FIELD_LIMIT_BYTES} bytes")

    def _part_end(self) -> None:
        if self._field is not None:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True


def _no_room(error: OSError) -> Refusal:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(
            "no room for the artifact in the server's data folder", hint="remove old artifacts", status=507
        )
    return Refusal(f"the artifact could not be stored: {error.strerror}", status=500)
