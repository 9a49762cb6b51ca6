# SPDX-License-Identifier: Apache-2.0
"""`python -m update_tools.server`: the same as `ota server`."""

import sys

from update_agent.errors import UpdateError
from update_tools.server.cli import app

try:
    app(prog_name="ota server")
except UpdateError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
