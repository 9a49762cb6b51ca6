# SPDX-License-Identifier: Apache-2.0
"""`ota server`: the control server in one command."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer

from update_agent.errors import UpdateError
from update_tools.server.settings import Settings, is_loopback

PR_SET_PDEATHSIG = 1  # linux/prctl.h

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def server(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. There is no login yet: this machine only, unless --insecure-no-login."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    data: Annotated[Path, typer.Option(help="Folder for database, artifacts and the server's key.")] = Path(
        "server-data"
    ),
    auto_accept: Annotated[
        bool, typer.Option("--auto-accept", help="Accept every device at once. For benches only.")
    ] = False,
    public_url: Annotated[
        str, typer.Option(help="Address in download links. Default: the one the device called.")
    ] = "",
    insecure_no_login: Annotated[
        bool, typer.Option("--insecure-no-login", help="Let everyone who reaches the address manage updates.")
    ] = False,
    ready_fd: Annotated[int, typer.Option(hidden=True, help="Write the address here once listening.")] = -1,
    parent: Annotated[int, typer.Option(hidden=True, help="Process to end with.")] = 0,
) -> None:
    """Run the control server: device API, management API and page in one process.

    There is no login yet, so the server listens on this machine only (127.0.0.1), and its pages answer only
    to this machine's own names. It refuses any other address unless --insecure-no-login says that this is
    meant; then everyone who reaches the port can deploy to every device.

    Devices in a QEMU user network reach it as http://10.0.2.2:PORT. State is kept in --data, and the server
    can be killed at any time.
    """
    if not is_loopback(host) and not insecure_no_login:
        raise UpdateError(
            f"there is no login yet, so listening on {host} would let everyone deploy",
            hint="listen on 127.0.0.1, or say --insecure-no-login",
        )
    if public_url and not public_url.startswith(("http://", "https://")):
        raise UpdateError(f"--public-url {public_url!r} is not an http or https address")
    if parent:
        _end_with(parent)
    import uvicorn

    from update_tools.server.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings = Settings(data=data, auto_accept=auto_accept, public_url=public_url, is_open=insecure_no_login)
    application = create_app(settings)
    listener = _listen(host, port)
    url = _url(listener)
    if ready_fd >= 0:
        os.write(ready_fd, f"{url}\n".encode())
        os.close(ready_fd)
    typer.echo(f"control server on {url}, data in {data}", err=True)
    config = uvicorn.Config(
        application,
        access_log=False,  # ours leaves out the query with its signatures
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
        limit_concurrency=4000,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _end_with(parent: int) -> None:
    """Be told to stop when the process that started us is gone, however it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != parent:
        raise UpdateError("the process that wanted this server is gone")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UpdateError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="is another server running? try --port 0",
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
