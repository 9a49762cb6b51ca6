# SPDX-License-Identifier: Apache-2.0
"""What all pages share: rendering with who looks at it, forms with their token."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from update_tools.server import render, rollout
from update_tools.server.bodies import read_limited
from update_tools.server.db import now
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Forbidden, Refusal

FORM_LIMIT_BYTES = 1 << 20
NONCE_COOKIE = "ota_form"  # binds forms to a browser that has no session yet


def page(
    request: Request, template: str, *, code: int = 200, topics: Sequence[str] = (), **values: Any
) -> Response:
    """A page. Templates get `who`, `token` (for forms and the header X-CSRF-Token), `path`, `here`, `now`.

    `topics`: what it shows that may still change (events.py); it follows that as long as it is open.
    """
    who = who_of(request)
    nonce = _nonce(request)
    is_new = not nonce
    if is_new:
        nonce = secrets.token_urlsafe(16)
    text = render.TEMPLATES.get_template(template).render(
        values,
        token=house_of(request).signer.sign("form", nonce),
        topics=topics if request.method == "GET" else (),
        here=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        now=now(),
        path=request.url.path,
        rollout=rollout,
        who=who,
    )
    response = HTMLResponse(text, status_code=code, headers={"cache-control": "no-store"})
    if is_new:
        is_secure = request.url.scheme == "https"
        response.set_cookie(NONCE_COOKIE, nonce, httponly=True, samesite="strict", secure=is_secure)
    return response


def error_page(request: Request, status: int, message: str, request_id: str) -> Response:
    """What a person sees when a request is refused."""
    return page(request, "error.html", status=status, message=message, request_id=request_id, code=status)


async def read_form(request: Request) -> dict[str, list[str]]:
    """A page's form, once its token shows that it came from a page of ours."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "application/x-www-form-urlencoded":
        raise Refusal("a form is expected here", status=415)
    body = await read_limited(request, FORM_LIMIT_BYTES)
    try:
        form = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=100_000)
    except ValueError as error:
        raise BadRequest("the form is malformed") from error
    check_form_token(request, first(form, "token"))
    return form


def check_form_token(request: Request, token: str) -> None:
    """Raises Forbidden unless the form is from a page that this browser, in this session, got from us."""
    nonce = _nonce(request)
    if not nonce or not house_of(request).signer.is_valid("form", nonce, token):
        raise Forbidden("the form is not from a page of this server", hint="reload the page and try again")


def first(form: Mapping[str, list[str]], name: str) -> str:
    """A field's first value, or nothing."""
    return form.get(name, [""])[0]


def see(path: str) -> Response:
    """On to a page, after a form."""
    return RedirectResponse(path, status_code=303)


def _nonce(request: Request) -> str:
    """What form tokens are bound to: the session, or before a login a cookie of the browser."""
    nonce = who_of(request).session_id or request.cookies.get(NONCE_COOKIE, "")
    return nonce if re.fullmatch(r"[\w-]{22,64}", nonce) else ""
