# SPDX-License-Identifier: Apache-2.0
"""Who makes a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

SCOPES = ("read", "deploy", "admin")  # each includes the ones before it


@dataclass(frozen=True)
class Who:
    """A person or a program. `scope` is the largest they have; empty for one who has not logged in."""

    name: str = ""
    scope: str = ""
    address: str = ""
    user_id: str | None = None
    session_id: str = ""
    is_browser: bool = False  # came with a cookie: what it changes needs a form token
    token_id: str = ""

    def may(self, scope: str) -> bool:
        """Whether their scope includes this one."""
        return bool(self.scope) and SCOPES.index(self.scope) >= SCOPES.index(scope)


NOBODY = Who()
EVERYBODY = Who(name="no login", scope="admin")  # with --insecure-no-login
