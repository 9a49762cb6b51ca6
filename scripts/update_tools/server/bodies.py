# SPDX-License-Identifier: Apache-2.0
"""Request bodies: limited, timed, and only then looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from update_tools.server.faults import BadRequest, Refusal, TooLarge

STALL_S = 60.0  # no byte for so long: the other side is gone, or wants to keep us busy
WHOLE_S = 300.0  # for a body that is read as a whole; uploads may take as long as they move

DRAINED_BYTES = 8 << 20


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """The body piece by piece. Raises Refusal (408) on a stall, BadRequest if the sender hangs up."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(STALL_S):  # Python 3.11's wait_for can swallow WHOLE_S
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refusal(f"no data for {STALL_S:.0f} s", status=408) from None
        except ClientDisconnect as error:
            raise BadRequest("the sender hung up") from error
        if chunk:
            yield chunk


async def read_limited(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLarge if it is more than the limit; never holds more than that.

    A body that is somewhat too long is still read to its end: closing while a client sends makes its system
    throw away our answer, and a device must learn that it was 413 (device-api.md section 5).
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes + DRAINED_BYTES:
        raise TooLarge(f"the body has {announced} bytes, at most {limit_bytes} are taken here")
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(WHOLE_S):
            async for chunk in chunks(request):
                received += len(chunk)
                if received <= limit_bytes:
                    body += chunk
                elif received > limit_bytes + DRAINED_BYTES:
                    break
    except TimeoutError:
        raise Refusal(f"the body took longer than {WHOLE_S:.0f} s", status=408) from None
    if received > limit_bytes:
        raise TooLarge(f"the body is longer than the {limit_bytes} bytes taken here")
    return bytes(body)


async def read_json(request: Request, limit_bytes: int) -> Any:
    """The body as JSON, whatever its declared type; a browser form is refused."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream", ""):
        raise Refusal(f"the body must be application/json, not {kind}", status=415)
    return parse_json(await read_limited(request, limit_bytes))


def parse_json(body: bytes) -> Any:
    """Strict JSON in UTF-8: no NaN, no endless nesting. Raises BadRequest.

    Half a surrogate pair becomes `?`: it cannot be stored, but it comes from a script's broken output, and a
    device whose report is refused for it would never be able to say that it failed.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if b"\\ud" in body.lower():
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except UnicodeError as error:
        raise BadRequest("the body is not UTF-8 text") from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return value


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
