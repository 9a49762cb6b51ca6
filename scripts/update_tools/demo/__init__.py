# SPDX-License-Identifier: Apache-2.0
"""The whole product on one virtual board, in about five minutes: `scripts/demo`."""
