# SPDX-License-Identifier: Apache-2.0
"""What the server refuses, with the HTTP status that says so."""

from __future__ import annotations

from update_agent.errors import UpdateError


class Refusal(UpdateError):
    """A request that is answered with an error: `status` is HTTP's, the message goes to the caller."""

    status = 400

    def __init__(self, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        if status is not None:
            self.status = status


class BadRequest(Refusal):
    """The request is not well formed."""


class Unauthorized(Refusal):
    """No valid token, a wrong signature, or a device nobody accepted."""

    status = 401


class Forbidden(Refusal):
    """Expired link, foreign web page, missing CSRF token."""

    status = 403


class NotFound(Refusal):
    """No such thing, or not for the one who asks."""

    status = 404


class Conflict(Refusal):
    """Against what is already decided."""

    status = 409


class TooLarge(Refusal):
    """More bytes than this kind of request may have."""

    status = 413


class Unprocessable(Refusal):
    """Well formed, but cannot be done."""

    status = 422


class Unavailable(Refusal):
    """Not now: the database or the artifact store does not answer, or another writer was first."""

    status = 503
    retry_after_s = 2
