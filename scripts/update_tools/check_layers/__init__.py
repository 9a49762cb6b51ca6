# SPDX-License-Identifier: Apache-2.0
"""`scripts/check-layers`: every board and series against the real BitBake, OE-core and BSP layers."""
