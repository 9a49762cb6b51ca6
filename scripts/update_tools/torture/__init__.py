# SPDX-License-Identifier: Apache-2.0
"""Updates back to back on a virtual board whose power is cut at random moments; what must hold after each."""
