# SPDX-License-Identifier: Apache-2.0
"""The measure for the server: its framework alone, answering a constant, served in the same way.

Run as `python -m update_tools.server.load.bare`: writes its address to stdout once it listens.
"""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI, Response

from update_tools.server.wire import TimedProtocol

PATH = "/api/devices/v2/deployments/device/deployments/next"


def make_app() -> FastAPI:
    """One route that answers 204 and does not even read the request's body."""
    app = FastAPI()

    @app.post(PATH)
    async def constant() -> Response:
        return Response(status_code=204)

    return app


def main() -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        make_app(),
        http=TimedProtocol,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        limit_concurrency=20_000,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
