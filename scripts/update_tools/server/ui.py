# SPDX-License-Identifier: Apache-2.0
"""The pages: plain HTML forms over the same services as the APIs, live where the browser runs page.js.

Everything works without JavaScript; then a page that shows something unfinished reloads itself.
"""

from __future__ import annotations

from fastapi import APIRouter

from update_tools.server import deployment_pages, device_pages, live_pages, release_pages, wizard

router = APIRouter(include_in_schema=False)
for room in (live_pages, wizard, deployment_pages, device_pages, release_pages):
    router.include_router(room.router)
