# SPDX-License-Identifier: Apache-2.0
"""Rehearsal of a team's own state scripts and pause hooks: `scripts/ota rehearse`."""
