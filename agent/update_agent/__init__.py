# SPDX-License-Identifier: Apache-2.0
"""Over-the-air update agent for A/B devices; wire-compatible with the Mender 3.x/5.x ecosystem."""

__version__ = "0.1.0"
