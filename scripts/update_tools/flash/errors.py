# SPDX-License-Identifier: Apache-2.0
"""The one error of this package."""

from __future__ import annotations

from update_agent.errors import UpdateError


class FlashError(UpdateError):
    """An image could not be written, or must not be."""
