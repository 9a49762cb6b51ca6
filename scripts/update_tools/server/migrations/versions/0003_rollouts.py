# SPDX-License-Identifier: Apache-2.0
"""Schedules, phases, gates, attempts, decisions for single devices, live progress."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What a status says about the stage; "installing" before the commit cannot be told from it.
STAGES = {
    1: "('downloading', 'pause_before_installing')",
    2: "('installing', 'pause_before_rebooting')",
    3: "('rebooting', 'pause_before_committing')",
    5: "('success')",
}


def new_columns() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "devices": (sa.Column("group_name", sa.Text(), nullable=False, server_default=""),),
        "deployments": (
            sa.Column("created_by", sa.Text(), nullable=False, server_default=""),
            sa.Column("start_at", sa.DateTime(), nullable=True),
            sa.Column("retries", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("phases", sa.Text(), nullable=True),
            sa.Column("targets", sa.Text(), nullable=True),
            sa.Column("rules", sa.Text(), nullable=True),
            sa.Column("gate_states", sa.Text(), nullable=True),
            sa.Column("held_at", sa.DateTime(), nullable=True),
            sa.Column("held_why", sa.Text(), nullable=False, server_default=""),
            sa.Column("held_waived", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("map_version", sa.Integer(), nullable=False, server_default="1"),
        ),
        "deployment_devices": (
            sa.Column("log_attempt", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("phase", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("due_at", sa.DateTime(), nullable=True),
            sa.Column("handed_out_at", sa.DateTime(), nullable=True),
            sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"),
            sa.Column("stage", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("decisions", sa.Text(), nullable=True),
            sa.Column("map_version", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("map_taken", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("map_taken_at", sa.DateTime(), nullable=True),
            sa.Column("progress_bytes", sa.BigInteger(), nullable=True),
            sa.Column("size_bytes", sa.BigInteger(), nullable=True),
            sa.Column("script", sa.Text(), nullable=False, server_default=""),
            sa.Column("progress_at", sa.DateTime(), nullable=True),
            sa.Column("vanished_at", sa.DateTime(), nullable=True),
        ),
    }


def upgrade() -> None:
    for table, columns in new_columns().items():
        for column in columns:
            op.add_column(table, column)
    op.create_index(op.f("ix_devices_group_name"), "devices", ["group_name"])
    op.create_index(
        "ix_deployment_devices_status", "deployment_devices", ["deployment_id", "status", "stage"]
    )
    op.execute("UPDATE deployment_devices SET handed_out_at = started_at")
    for stage, words in STAGES.items():
        op.execute(f"UPDATE deployment_devices SET stage = {stage} WHERE status IN {words}")


def downgrade() -> None:
    op.drop_index("ix_deployment_devices_status", "deployment_devices")
    op.drop_index(op.f("ix_devices_group_name"), "devices")
    for table, columns in new_columns().items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column.name)
