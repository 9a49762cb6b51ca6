# SPDX-License-Identifier: Apache-2.0
"""What runs at the desk: virtual boards, control server, artifact and inspection tools."""
