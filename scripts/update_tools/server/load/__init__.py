# SPDX-License-Identifier: Apache-2.0
"""Load on a control server by simulated devices: `ota bench-server`."""
