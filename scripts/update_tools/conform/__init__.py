# SPDX-License-Identifier: Apache-2.0
"""Conformance: files of test vectors, run against the agent's own code, not a copy of its rules."""
