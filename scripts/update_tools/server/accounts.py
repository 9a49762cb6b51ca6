# SPDX-License-Identifier: Apache-2.0
"""People and programs: users with passwords, browser sessions, API tokens, the first user's setup link.

Secrets are kept as hashes only. Session and token texts are random (256 bits), so a plain SHA-256 is enough
for them; passwords get argon2id.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, joinedload

from update_tools.server import audit
from update_tools.server.account_tables import ApiToken, LoginFailure, LoginSession, User
from update_tools.server.database import Database
from update_tools.server.db import new_id, now
from update_tools.server.faults import Conflict, Forbidden, NotFound, Refusal, Unauthorized, Unprocessable
from update_tools.server.tokens import Signer
from update_tools.server.who import SCOPES, Who

NAME = re.compile(r"[\w.@+-]{1,64}", re.ASCII)
PASSWORD_CHARS = (10, 1024)
SESSION_IDLE = timedelta(days=7)
SESSION_LIFE = timedelta(days=30)
SEEN_EVERY = timedelta(minutes=5)  # a request that changes nothing else costs no write more often than this
SETUP_LIFETIME_S = 24 * 3600
FAILURE_MEMORY = timedelta(days=1)
LONGEST_WAIT_S = 900.0
# Failed logins that cost nothing: one person's typing, an office behind one address, a name under attack
FREE_FAILURES = {"pair": 5, "address": 40, "name": 60}


# --- passwords -------------------------------------------------------------------------------------------


class Passwords:
    """Hashes and checks passwords: 64 MiB and some 50 ms each, so only two at a time."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turns = threading.BoundedSemaphore(2)
        self._nobody = ""

    def hash(self, password: str) -> str:
        """The text to keep. Raises Unprocessable if the password is too short or too long."""
        shortest, longest = PASSWORD_CHARS
        if not shortest <= len(password) <= longest:
            raise Unprocessable(f"a password has {shortest} to {longest} characters")
        with self._turns:
            return self._hasher.hash(password)

    def is_right(self, kept: str | None, password: str) -> bool:
        """Whether it is the password; without a kept hash (no such user) it takes as long and is False."""
        if kept is None:
            self._nobody = self._nobody or self.hash(secrets.token_urlsafe(16))
        with self._turns:
            try:
                return self._hasher.verify(kept or self._nobody, password[: PASSWORD_CHARS[1]])
            except (VerifyMismatchError, InvalidHashError):
                return False


# --- users -----------------------------------------------------------------------------------------------


def add_user(session: Session, passwords: Passwords, name: str, password: str, role: str) -> User:
    """Add a user. Raises Unprocessable or Conflict."""
    _check_scope(role)
    if not NAME.fullmatch(name):
        raise Unprocessable("a user name has 1 to 64 letters, digits or . @ + - _")
    if session.scalar(select(User.id).where(func.lower(User.name) == name.lower())) is not None:
        raise Conflict(f"there is already a user {name}")
    user = User(id=new_id(), name=name, password_hash=passwords.hash(password), role=role)
    session.add(user)
    audit.record(session, "user added", "user", user.id, f"{name}, {role}")
    return user


def set_password(session: Session, passwords: Passwords, user: User, password: str) -> None:
    """Change a password; all other sessions of the user end."""
    user.password_hash = passwords.hash(password)
    others = delete(LoginSession).where(LoginSession.user_id == user.id)
    session.execute(others.where(LoginSession.id != audit.actor(session).session_id))
    audit.record(session, "password changed", "user", user.id, user.name)


def set_role(session: Session, user: User, role: str) -> None:
    """Change what a user may do. Raises Conflict for the last admin."""
    _check_scope(role)
    if role != "admin":
        _keep_an_admin(session, user)
    user.role = role
    audit.record(session, "role changed", "user", user.id, f"{user.name}, {role}")


def remove_user(session: Session, user: User) -> None:
    """Remove a user with sessions and tokens. Raises Conflict for the last admin."""
    _keep_an_admin(session, user)
    audit.record(session, "user removed", "user", user.id, user.name)
    session.execute(delete(LoginSession).where(LoginSession.user_id == user.id))
    session.execute(delete(ApiToken).where(ApiToken.user_id == user.id))
    session.delete(user)


def users(session: Session) -> Sequence[User]:
    """All users by name."""
    return session.scalars(select(User).order_by(User.name)).all()


def get_user(session: Session, user_id: str) -> User:
    """A user by id. Raises NotFound."""
    user = session.get(User, user_id)
    if user is None:
        raise NotFound("there is no such user")
    return user


def user_named(session: Session, name: str) -> User:
    """A user by name. Raises NotFound."""
    user = session.scalar(select(User).where(func.lower(User.name) == name.lower()))
    if user is None:
        raise NotFound(f"there is no user {name}")
    return user


def _keep_an_admin(session: Session, user: User) -> None:
    # All admin rows are locked, so two admins cannot remove each other at the same moment.
    admins = session.scalars(select(User).where(User.role == "admin").order_by(User.id).with_for_update())
    if [admin.id for admin in admins] == [user.id]:
        raise Conflict("this is the last admin", hint="make another user an admin first")


def _check_scope(word: str) -> None:
    if word not in SCOPES:
        raise Unprocessable(f"{word!r:.40} is not one of {', '.join(SCOPES)}")


# --- login -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Login:
    """A new session: the text for the cookie or the Authorization header, and until when."""

    token: str
    expires_at: datetime


def wait_s(kind: str, count: int) -> float:
    """How long after its last failed login a key must wait: nothing at first, then doubled each time."""
    over = count - FREE_FAILURES[kind]
    return 0.0 if over < 0 else min(2.0 ** min(over, 20), LONGEST_WAIT_S)


def log_in(db: Database, passwords: Passwords, name: str, password: str, address: str) -> Login:
    """A session for the right name and password. Raises Unauthorized, or Refusal 429 after many failures.

    An attempt is counted before the password is looked at, so many at once are no way around the count.
    """
    who = Who(name=name[:64], address=address)
    keys = {"pair": f"{address} {name[:64].lower()}", "address": address, "name": name[:64].lower()}
    with db.write(who) as session:
        _count_attempt(session, keys)
        user = session.scalar(select(User).where(func.lower(User.name) == name.lower()))
    is_right = passwords.is_right(user.password_hash if user else None, password)
    with db.write(who) as session:
        if not is_right or user is None:
            audit.record(session, "login failed", "user", user.id if user else "", name[:64])
        else:
            for kind in ("pair", "name"):
                session.execute(delete(LoginFailure).where(LoginFailure.key == f"{kind} {keys[kind]}"))
            user = get_user(session, user.id)
            user.login_at = now()
            login = _open_session(session, user, address)
            audit.record(session, "login", "user", user.id, user.name)
            return login
    raise Unauthorized("user name or password is wrong")


def _count_attempt(session: Session, keys: dict[str, str]) -> None:
    moment = now()
    session.execute(delete(LoginFailure).where(LoginFailure.at < moment - FAILURE_MEMORY))
    for kind, key in keys.items():
        entry = session.get(LoginFailure, f"{kind} {key}", with_for_update=True)
        if entry is None:
            session.add(LoginFailure(key=f"{kind} {key}", count=1, at=moment))
            continue
        left_s = wait_s(kind, entry.count) - (moment - entry.at).total_seconds()
        if left_s > 0:
            raise TooManyLogins(left_s)
        entry.count += 1
        entry.at = moment


class TooManyLogins(Refusal):
    """Failed logins came too fast."""

    status = 429

    def __init__(self, left_s: float) -> None:
        self.retry_after_s = int(left_s) + 1
        super().__init__("too many failed logins", hint=f"try again in {self.retry_after_s} s")


def _open_session(session: Session, user: User, address: str) -> Login:
    token = secrets.token_urlsafe(32)
    moment = now()
    session.execute(delete(LoginSession).where(LoginSession.expires_at < moment))
    entry = LoginSession(id=digest(token), user_id=user.id, expires_at=moment + SESSION_LIFE, address=address)
    session.add(entry)
    return Login(token, entry.expires_at)


def log_out(session: Session, session_id: str) -> None:
    """End a session."""
    session.execute(delete(LoginSession).where(LoginSession.id == session_id))


def digest(token: str) -> str:
    """What the database keeps of a session's or token's text."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


# --- tokens ----------------------------------------------------------------------------------------------


def add_token(
    session: Session, name: str, scope: str, *, days: int | None = None, text: str = "", replace: bool = False
) -> tuple[ApiToken, str]:
    """Add an API token; returns its entry and the text, which is not kept.

    It belongs to the user who makes it, if one does, and then has at most that user's scope.
    """
    _check_scope(scope)
    maker = audit.actor(session)
    if maker.scope and not maker.may(scope):
        raise Forbidden(f"your own scope is {maker.scope}; a token cannot have more")
    if not NAME.fullmatch(name):
        raise Unprocessable("a token name has 1 to 64 letters, digits or . @ + - _")
    if replace:
        session.execute(delete(ApiToken).where(ApiToken.name == name))
    elif session.scalar(select(ApiToken.id).where(ApiToken.name == name)) is not None:
        raise Conflict(f"there is already a token {name}")
    text = text or f"ota_{secrets.token_urlsafe(32)}"
    token = ApiToken(
        id=new_id(),
        name=name,
        scope=scope,
        token_hash=digest(text),
        user_id=maker.user_id,
        expires_at=None if days is None else now() + timedelta(days=days),
    )
    session.add(token)
    audit.record(session, "token added", "token", token.id, f"{name}, {scope}")
    return token, text


def add_bench_token(session: Session, text: str) -> None:
    """The token of a program that started this server; several servers may share the database."""
    session.execute(delete(ApiToken).where(ApiToken.name.like("bench-%"), ApiToken.expires_at < now()))
    add_token(session, f"bench-{digest(text)[:12]}", "admin", days=30, text=text, replace=True)


def tokens(session: Session, user_id: str | None = None) -> Sequence[ApiToken]:
    """All tokens, or those of a user, by name."""
    query = select(ApiToken).options(joinedload(ApiToken.user)).order_by(ApiToken.name)
    return session.scalars(query if user_id is None else query.where(ApiToken.user_id == user_id)).all()


def revoke(session: Session, token_id: str) -> None:
    """Remove a token; it stops working at once. Raises NotFound, also for another user's, save for admins."""
    token = session.get(ApiToken, token_id)
    maker = audit.actor(session)
    if token is None or not (maker.may("admin") or token.user_id == maker.user_id):
        raise NotFound("there is no such token")
    audit.record(session, "token revoked", "token", token.id, token.name)
    session.delete(token)


# --- who is it -------------------------------------------------------------------------------------------


def by_token(db: Database, text: str, address: str) -> Who | None:
    """Whose Authorization header this is; None if it is nobody's, or not any more."""
    moment = now()
    with db.read() as session:
        token = session.scalar(select(ApiToken).where(ApiToken.token_hash == digest(text)))
        if token is None:
            return by_session(db, text, address, is_browser=False)
        if token.expires_at is not None and token.expires_at <= moment:
            return None
        scope = token.scope
        if token.user is not None:
            scope = min(scope, token.user.role, key=SCOPES.index)
        name = f"{token.user.name} (token {token.name})" if token.user else f"token {token.name}"
        is_stale = token.used_at is None or moment - token.used_at > SEEN_EVERY
        who = Who(name, scope, address, user_id=token.user_id, token_id=token.id)
    if is_stale:
        with db.write() as session:
            entry = session.get(ApiToken, who.token_id)
            if entry is not None:
                entry.used_at = moment
    return who


def by_session(db: Database, text: str, address: str, *, is_browser: bool) -> Who | None:
    """Whose session this is; None if it ended."""
    moment = now()
    with db.read() as session:
        entry = session.get(LoginSession, digest(text))
        if entry is None or entry.expires_at <= moment or moment - entry.seen_at > SESSION_IDLE:
            return None
        who = Who(
            entry.user.name,
            entry.user.role,
            address,
            user_id=entry.user_id,
            session_id=entry.id,
            is_browser=is_browser,
        )
        is_stale = moment - entry.seen_at > SEEN_EVERY
    if is_stale:
        with db.write() as session:
            again = session.get(LoginSession, digest(text))
            if again is not None:
                again.seen_at = moment
    return who


# --- the first user --------------------------------------------------------------------------------------


def needs_setup(session: Session) -> bool:
    """Whether there is no user yet."""
    return session.scalar(select(User.id).limit(1)) is None


def setup_key(signer: Signer) -> str:
    """What a setup link carries: works for a day, and only while there is no user."""
    expires = str(int(time.time()) + SETUP_LIFETIME_S)
    return f"{expires}.{signer.sign('setup', expires)}"


def set_up(
    db: Database, signer: Signer, passwords: Passwords, key: str, name: str, password: str, address: str
) -> Login:
    """Make the first user, an admin, and log them in. Raises Forbidden, Unprocessable or Conflict."""
    check_setup_key(db, signer, key)
    with db.write(Who(name=name[:64], address=address)) as session:
        if not needs_setup(session):
            raise Forbidden("the server is set up already", hint="log in")
        user = add_user(session, passwords, name, password, "admin")
        session.flush()
        return _open_session(session, user, address)


def check_setup_key(db: Database, signer: Signer, key: str) -> None:
    """Raises Forbidden unless a setup link with this key would work now."""
    expires, _, signature = key.partition(".")
    if not signer.is_valid("setup", expires, signature) or int(expires) <= time.time():
        raise Forbidden(
            "the setup link is wrong or too old", hint="restart the server: it prints a new one while needed"
        )
    with db.read() as session:
        if not needs_setup(session):
            raise Forbidden("the server is set up already", hint="log in")
