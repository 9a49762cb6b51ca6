# SPDX-License-Identifier: Apache-2.0
"""Artifacts that come as a web form: multipart parts straight into the store, never in memory.

For large artifacts over bad lines there is resumable.py. This one is the reference's, and a browser's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from update_tools.server.bodies import chunks
from update_tools.server.db import Artifact
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Refusal, TooLarge, Unprocessable
from update_tools.server.intake import Taker
from update_tools.server.settings import House

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_LIMIT_BYTES = 64 << 10
FIELDS_LIMIT = 32


@dataclass
class Form:
    """A multipart form: small fields in memory, the one file in the store."""

    fields: dict[str, str] = field(default_factory=dict)
    file_bytes: int = 0
    has_file: bool = False


async def receive(request: Request, house: House, check: Callable[[Form], None]) -> Artifact:
    """Take an uploaded artifact and return its entry. `check` sees the form before anything is kept.

    The same bytes again give the same entry, so an upload whose answer was lost can be repeated.
    Raises Refusal: 400 not a multipart form, 409 the release exists for one of the device types,
    422 not a usable artifact, 507 no room.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Refusal("an upload is a multipart/form-data form", status=415)
    who = who_of(request)
    upload_id = await run_in_threadpool(house.intake.begin, who, is_resumable=False)
    is_kept = False
    try:
        taker = await run_in_threadpool(house.intake.take, upload_id, 0)
        try:
            form = await _take(request, taker, boundary)
            check(form)
            _check_form(form)
            await run_in_threadpool(taker.commit, is_last=True)
        finally:
            await run_in_threadpool(taker.close)
        await run_in_threadpool(house.intake.describe, upload_id, form.fields.get("description", ""))
        entry = await run_in_threadpool(house.intake.finish, upload_id, who)
        is_kept = True
        return entry
    finally:
        if not is_kept:
            await run_in_threadpool(house.intake.discard, upload_id)


async def _take(request: Request, taker: Taker, boundary: bytes) -> Form:
    sink = _Sink(taker)
    try:
        parser = MultipartParser(boundary, sink.callbacks())
        async for chunk in chunks(request):
            parser.write(chunk)
            if sink.has_much():
                await run_in_threadpool(sink.flush)
    except FormParserError as error:
        raise BadRequest(f"the form is broken: {error}") from error
    if not sink.is_complete:
        raise BadRequest("the form ends in the middle")
    await run_in_threadpool(sink.flush)
    return sink.form


def _check_form(form: Form) -> None:
    if not form.has_file:
        raise BadRequest("the form has no file field named artifact")
    if not form.file_bytes:
        raise Unprocessable("not an artifact: the file is empty")
    announced = form.fields.get("size", "")
    if announced and announced != str(form.file_bytes):
        raise Unprocessable(f"the form says size {announced[:20]}, the artifact has {form.file_bytes} bytes")


class _Sink:
    """The parser's callbacks: sorts parts into fields and the file."""

    def __init__(self, taker: Taker) -> None:
        self.form = Form()
        self.is_complete = False
        self._taker = taker
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
        self._taker.write(bytes(self._waiting))
        self.form.file_bytes += len(self._waiting)
        self._waiting.clear()

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
