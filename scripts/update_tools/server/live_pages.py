# SPDX-License-Identifier: Apache-2.0
"""Server-sent events for open pages: which of what they show has changed. Pages fetch themselves again then.

An event has no content but its topics, so whoever may read pages may hear them. What changes in quick
succession is one event.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from update_tools.server.device_api import house_of
from update_tools.server.events import Hub
from update_tools.server.faults import BadRequest

router = APIRouter(include_in_schema=False)

TOPIC = re.compile(r"deployments|devices|releases|(deployment|device):[0-9a-f-]{36}")
GATHER_S = 0.4  # a fleet that moves would render pages all the time
BEAT_S = 15.0  # proxies close what is silent, and a browser that went away is noticed
LIFE_S = 900.0  # then the browser connects again, and its login is looked at again


@router.get("/live")
async def live(
    request: Request, topic: Annotated[list[str], Query(min_length=1, max_length=10)]
) -> StreamingResponse:
    """Events `changed` for topics (see events.py), until the browser goes or some minutes are over."""
    for name in topic:
        if not TOPIC.fullmatch(name):
            raise BadRequest(f"{name!r:.60} is not a topic")
    return StreamingResponse(
        _events(house_of(request).hub, topic),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(hub: Hub, topics: list[str]) -> AsyncIterator[str]:
    ends_at = time.monotonic() + LIFE_S
    with hub.subscribe(topics) as subscription:
        # Whatever changed between the page and this connection: it looks once.
        yield "retry: 2000\nevent: changed\ndata: *\n\n"
        while time.monotonic() < ends_at and not subscription.is_closed:
            news = await subscription.wait(BEAT_S)
            if not news:
                yield ": still here\n\n"
                continue
            await asyncio.sleep(GATHER_S)
            yield f"event: changed\ndata: {' '.join(sorted(news))}\n\n"
