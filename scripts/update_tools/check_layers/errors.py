# SPDX-License-Identifier: Apache-2.0
"""The three ways in which a check does not end well."""

from __future__ import annotations

from update_agent.errors import UpdateError


class CheckError(UpdateError):
    """The tool cannot work here: usage, missing programs, no user to build as."""


class Failed(UpdateError):
    """A check found something; the message is its line in the table."""


class Skipped(UpdateError):
    """A check has nothing to run on; the message says why."""
