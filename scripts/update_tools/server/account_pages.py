# SPDX-License-Identifier: Apache-2.0
"""Pages about people: first start, login, one's own account, and for admins all users and the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from update_tools.server import accounts, audit
from update_tools.server.device_api import house_of
from update_tools.server.door import SESSION_COOKIE, refuse, set_session, who_of
from update_tools.server.faults import Forbidden, Refusal, Unprocessable
from update_tools.server.pages import first, page, read_form, see
from update_tools.server.who import SCOPES

router = APIRouter(include_in_schema=False)

AUDIT_ROWS = 200
Answer = TypeVar("Answer")


# --- coming in and going out -----------------------------------------------------------------------------


@router.get("/setup")
def setup_form(request: Request, key: str = "") -> Response:
    """The page behind the setup link."""
    house = house_of(request)
    accounts.check_setup_key(house.db, house.signer, key)
    return page(request, "setup.html", key=key, name="", problem="")


@router.post("/setup")
async def set_up(request: Request) -> Response:
    """Make the first user."""
    form = await read_form(request)
    house = house_of(request)
    key, name, password = (first(form, field) for field in ("key", "name", "password"))

    def work() -> Response:
        try:
            if password != first(form, "again"):
                raise Unprocessable("the two passwords differ")
            login = accounts.set_up(
                house.db, house.signer, house.passwords, key, name, password, who_of(request).address
            )
        except Unprocessable as refusal:
            return page(request, "setup.html", code=422, key=key, name=name, problem=str(refusal))
        response = see("/")
        set_session(request, response, login)
        return response

    return await run_in_threadpool(work)


@router.get("/login")
def login_form(request: Request, next: str = "/") -> Response:  # noqa: A002  the parameter's name
    """The login page."""
    if who_of(request).scope:
        return see(_inside(next))
    with house_of(request).db.read() as session:
        is_first = accounts.needs_setup(session)
    return page(request, "login.html", next=_inside(next), name="", problem="", is_first=is_first)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Log in."""
    form = await read_form(request)
    house = house_of(request)
    name, password, wanted = first(form, "name"), first(form, "password"), _inside(first(form, "next"))

    def work() -> Response:
        try:
            login = accounts.log_in(house.db, house.passwords, name, password, who_of(request).address)
        except Refusal as refusal:
            response = page(
                request,
                "login.html",
                code=refusal.status,
                next=wanted,
                name=name,
                problem=str(refusal),
                is_first=False,
            )
            retry = refuse(request, refusal).headers.get("retry-after")
            if retry is not None:
                response.headers["retry-after"] = retry
            return response
        response = see(wanted)
        set_session(request, response, login)
        return response

    return await run_in_threadpool(work)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """Log out."""
    await read_form(request)

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            accounts.log_out(session, who_of(request).session_id)

    await run_in_threadpool(work)
    response = see("/login")
    response.delete_cookie(SESSION_COOKIE)
    return response


# --- one's own -------------------------------------------------------------------------------------------


@router.get("/account")
def account(request: Request) -> Response:
    """Password and tokens of the one who looks."""
    return _account_page(request)


@router.post("/account/password")
async def change_password(request: Request) -> Response:
    """Change one's own password; the present one is asked for."""
    form = await read_form(request)

    def work(session: Session) -> Response:
        house, who = house_of(request), who_of(request)
        user = accounts.get_user(session, _own_id(request))
        if not house.passwords.is_right(user.password_hash, first(form, "present")):
            raise Forbidden(f"{who.name}'s present password is another one")
        if first(form, "password") != first(form, "again"):
            raise Unprocessable("the two passwords differ")
        accounts.set_password(session, house.passwords, user, first(form, "password"))
        return see("/account")

    return await _change(request, work, _account_page)


@router.post("/account/tokens")
async def add_token(request: Request) -> Response:
    """Make a token; its text is shown on the page that answers, and never again."""
    form = await read_form(request)
    days = first(form, "days")

    def work(session: Session) -> str:
        _own_id(request)
        lifetime = int(days) if days.isdigit() and 0 < int(days) < 10_000 else None
        return accounts.add_token(session, first(form, "name"), first(form, "scope"), days=lifetime)[1]

    answer = await _change(request, work, _account_page)
    if isinstance(answer, str):
        return await run_in_threadpool(_account_page, request, shown=answer)
    return answer


@router.post("/account/tokens/{token_id}/revoke")
async def revoke(request: Request, token_id: str) -> Response:
    """Revoke a token."""
    await read_form(request)

    def work(session: Session) -> Response:
        accounts.revoke(session, token_id)
        return see("/account")

    return await _change(request, work, _account_page)


# --- for admins ------------------------------------------------------------------------------------------


@router.get("/people")
def people(request: Request) -> Response:
    """All users and the audit log."""
    return _people_page(request)


@router.post("/people")
async def add_user(request: Request) -> Response:
    """Add a user."""
    form = await read_form(request)

    def work(session: Session) -> Response:
        name, password, role = (first(form, field).strip() for field in ("name", "password", "role"))
        accounts.add_user(session, house_of(request).passwords, name, password, role)
        return see("/people")

    return await _change(request, work, _people_page)


@router.post("/people/{user_id}")
async def change_user(request: Request, user_id: str) -> Response:
    """Change a user's role or password, or remove them."""
    form = await read_form(request)

    def work(session: Session) -> Response:
        user = accounts.get_user(session, user_id)
        match first(form, "do"):
            case "role":
                accounts.set_role(session, user, first(form, "role"))
            case "password":
                accounts.set_password(session, house_of(request).passwords, user, first(form, "password"))
            case "remove":
                accounts.remove_user(session, user)
            case _:
                raise Unprocessable("the form asks for nothing")
        return see("/people")

    return await _change(request, work, _people_page)


# --- inside ----------------------------------------------------------------------------------------------


async def _change(
    request: Request, work: Callable[[Session], Answer], again: Callable[..., Response]
) -> Answer | Response:
    """Do it in one transaction; on a refusal the page comes back with the reason."""

    def run() -> Answer | Response:
        try:
            with house_of(request).db.write(who_of(request)) as session:
                return work(session)
        except Refusal as refusal:
            return again(request, problem=str(refusal), code=refusal.status)

    return await run_in_threadpool(run)


def _account_page(request: Request, *, problem: str = "", code: int = 200, shown: str = "") -> Response:
    who = who_of(request)
    with house_of(request).db.read() as session:
        own = accounts.tokens(session, None if who.may("admin") else who.user_id or "")
    scopes = [scope for scope in SCOPES if who.may(scope)]
    return page(request, "account.html", code=code, problem=problem, shown=shown, tokens=own, scopes=scopes)


def _people_page(request: Request, *, problem: str = "", code: int = 200) -> Response:
    with house_of(request).db.read() as session:
        known = accounts.users(session)
        log = audit.entries(session, limit=AUDIT_ROWS)
    return page(request, "people.html", code=code, problem=problem, users=known, log=log, scopes=SCOPES)


def _own_id(request: Request) -> str:
    user_id = who_of(request).user_id
    if user_id is None:
        raise Forbidden("only a user who is logged in has an account")
    return user_id


def _inside(path: str) -> str:
    """A path of this server and nothing else, whatever a link says."""
    is_inside = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_inside else "/"
