# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry: the server passes its own connection, already in a transaction."""

from alembic import context

from update_tools.server import account_tables  # noqa: F401  its tables belong to Base
from update_tools.server.db import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
