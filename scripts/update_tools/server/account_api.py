# SPDX-License-Identifier: Apache-2.0
"""The JSON API about people: login, users, API tokens, audit log."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from update_tools.server import accounts, audit
from update_tools.server.account_tables import ApiToken, User
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import Forbidden, Unauthorized
from update_tools.server.shapes import moment, moments

router = APIRouter(prefix="/api/management/v1", tags=["people"])
USERS = "/useradm/users"
TOKENS = "/useradm/settings/tokens"

Role = Literal["read", "deploy", "admin"]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Password = Annotated[str, Field(min_length=1, max_length=1024)]


class Strict(BaseModel):
    """A body whose unknown fields are refused by name instead of being ignored."""

    model_config = ConfigDict(extra="forbid")


class UserBody(Strict):
    """A new user."""

    name: Name
    password: Password
    role: Role = "read"


class UserChange(Strict):
    """What an admin changes about a user."""

    password: Password | None = None
    role: Role | None = None


class PasswordBody(Strict):
    """One's own new password, and the present one."""

    current_password: Password
    password: Password


class TokenBody(Strict):
    """A new API token; without `expires_in_days` it works until it is revoked."""

    name: Name
    scope: Role = "read"
    expires_in_days: int | None = Field(default=None, ge=1, le=3650)


# --- login -----------------------------------------------------------------------------------------------


@router.post("/useradm/auth/login", response_class=PlainTextResponse)
def log_in(request: Request) -> PlainTextResponse:
    """A session by HTTP Basic: the answer is its token, sent as Bearer. 429 after many failures."""
    name, password = _basic(request.headers.get("authorization", ""))
    house = house_of(request)
    login = accounts.log_in(house.db, house.passwords, name, password, who_of(request).address)
    return PlainTextResponse(login.token, headers={"cache-control": "no-store"})


@router.post("/useradm/auth/logout", status_code=204)
def log_out(request: Request) -> Response:
    """End the session that asks."""
    with house_of(request).db.write(who_of(request)) as session:
        accounts.log_out(session, who_of(request).session_id)
    return Response(status_code=204)


# --- users -----------------------------------------------------------------------------------------------


@router.get(USERS)
def list_users(request: Request) -> list[dict[str, Any]]:
    """All users."""
    with house_of(request).db.read() as session:
        return [_user(user) for user in accounts.users(session)]


@router.post(USERS, status_code=201)
def add_user(request: Request, body: UserBody) -> Response:
    """Add a user."""
    house = house_of(request)
    with house.db.write(who_of(request)) as session:
        user = accounts.add_user(session, house.passwords, body.name, body.password, body.role)
        location = f"/api/management/v1{USERS}/{user.id}"
    return Response(status_code=201, headers={"Location": location})


@router.get(USERS + "/me")
def me(request: Request) -> dict[str, str]:
    """Who asks, and what they may do."""
    who = who_of(request)
    return {"name": who.name, "scope": who.scope} | ({"id": who.user_id} if who.user_id else {})


@router.put(USERS + "/me/password", status_code=204)
def change_own_password(request: Request, body: PasswordBody) -> Response:
    """Change one's own password; all other sessions end."""
    house, who = house_of(request), who_of(request)
    if who.user_id is None or who.token_id:
        raise Forbidden("only a user who is logged in changes their password")
    with house.db.write(who) as session:
        user = accounts.get_user(session, who.user_id)
        if not house.passwords.is_right(user.password_hash, body.current_password):
            raise Forbidden("the present password is another one")
        accounts.set_password(session, house.passwords, user, body.password)
    return Response(status_code=204)


@router.get(USERS + "/{user_id}")
def show_user(request: Request, user_id: str) -> dict[str, Any]:
    """One user."""
    with house_of(request).db.read() as session:
        return _user(accounts.get_user(session, user_id))


@router.put(USERS + "/{user_id}", status_code=204)
def change_user(request: Request, user_id: str, body: UserChange) -> Response:
    """Change a user's role or password."""
    house = house_of(request)
    with house.db.write(who_of(request)) as session:
        user = accounts.get_user(session, user_id)
        if body.role is not None:
            accounts.set_role(session, user, body.role)
        if body.password is not None:
            accounts.set_password(session, house.passwords, user, body.password)
    return Response(status_code=204)


@router.delete(USERS + "/{user_id}", status_code=204)
def remove_user(request: Request, user_id: str) -> Response:
    """Remove a user with their sessions and tokens. 409 for the last admin."""
    with house_of(request).db.write(who_of(request)) as session:
        accounts.remove_user(session, accounts.get_user(session, user_id))
    return Response(status_code=204)


# --- tokens ----------------------------------------------------------------------------------------------


@router.get(TOKENS)
def list_tokens(request: Request) -> list[dict[str, Any]]:
    """One's own tokens, or all for an admin; never their texts."""
    who = who_of(request)
    with house_of(request).db.read() as session:
        return [
            _token(entry)
            for entry in accounts.tokens(session, None if who.may("admin") else who.user_id or "")
        ]


@router.post(TOKENS)
def add_token(request: Request, body: TokenBody) -> dict[str, str]:
    """Make a token. Its text is in this answer and nowhere else."""
    who = who_of(request)
    if who.token_id and not who.may("admin"):
        raise Forbidden("a token makes no tokens", hint="log in")
    with house_of(request).db.write(who) as session:
        entry, text = accounts.add_token(session, body.name, body.scope, days=body.expires_in_days)
        return {"id": entry.id, "token": text}


@router.delete(TOKENS + "/{token_id}", status_code=204)
def revoke_token(request: Request, token_id: str) -> Response:
    """Revoke a token at once."""
    with house_of(request).db.write(who_of(request)) as session:
        accounts.revoke(session, token_id)
    return Response(status_code=204)


# --- audit log -------------------------------------------------------------------------------------------


@router.get("/auditlogs/logs")
def audit_log(
    request: Request,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    per_page: Annotated[int, Query(ge=1, le=500)] = 20,
    kind: str = "",
    subject: str = "",
    actor: str = "",
) -> list[dict[str, str]]:
    """Who did what and when, newest first."""
    with house_of(request).db.read() as session:
        found = audit.entries(
            session,
            kind=kind,
            subject=subject,
            actor=actor,
            limit=per_page,
            offset=(page - 1) * per_page,
        )
        return [
            {
                "time": moment(entry.at),
                "actor": entry.actor,
                "address": entry.address,
                "action": entry.action,
                "kind": entry.kind,
                "subject": entry.subject,
                "text": entry.text,
            }
            for entry in found
        ]


# --- inside ----------------------------------------------------------------------------------------------


def _basic(header: str) -> tuple[str, str]:
    kind, _, packed = header.partition(" ")
    try:
        if kind.lower() != "basic":
            raise ValueError(kind)
        name, colon, password = base64.b64decode(packed.strip(), validate=True).decode().partition(":")
        if not colon:
            raise ValueError("no colon")
    except (ValueError, binascii.Error) as error:
        raise Unauthorized("a login needs HTTP Basic authorization with name and password") from error
    return name, password


def _user(user: User) -> dict[str, Any]:
    answer = {"id": user.id, "name": user.name, "role": user.role}
    return answer | moments(created_ts=user.created_at, login_ts=user.login_at)


def _token(entry: ApiToken) -> dict[str, Any]:
    answer = {"id": entry.id, "name": entry.name, "scope": entry.scope}
    if entry.user is not None:
        answer["user"] = entry.user.name
    return answer | moments(created_ts=entry.created_at, expires_ts=entry.expires_at, last_used=entry.used_at)
