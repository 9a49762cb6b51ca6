# SPDX-License-Identifier: Apache-2.0
"""`ota server`: the control server in one command, and its users and tokens."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from update_agent.errors import UpdateError
from update_tools.server.settings import Settings, is_loopback, open_database
from update_tools.server.who import Who

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TAKE_TIMEOUT_MS = 300_000

SCOPES = ("read", "deploy", "admin")
COMPLETE = {name: lambda: [(scope, "") for scope in SCOPES] for name in ("scope", "role")}  # for the Tab key

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
token_app = typer.Typer(no_args_is_help=True, help="API tokens for programs.")
user_app = typer.Typer(no_args_is_help=True, help="Users. The first one is made with the setup link.")
app.add_typer(token_app, name="token")
app.add_typer(user_app, name="user")


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True)
class Place:
    """Where a server keeps its state."""

    data: Path
    database_url: str


@app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    data: Annotated[Path, typer.Option(help="Folder for database, artifacts and the server's key.")] = Path(
        "server-data"
    ),
    database_url: Annotated[
        str,
        typer.Option(
            envvar="OTA_DATABASE_URL",
            help="postgresql+psycopg://user@host/name instead of SQLite; any number of servers may share it.",
        ),
    ] = "",
    artifact_store: Annotated[
        str,
        typer.Option(
            envvar="OTA_ARTIFACT_STORE",
            help="s3://bucket/prefix instead of the data folder. Credentials as for every S3 tool.",
        ),
    ] = "",
    s3_endpoint: Annotated[
        str, typer.Option(envvar="OTA_S3_ENDPOINT", help="Address of an S3 that is not Amazon's.")
    ] = "",
    s3_region: Annotated[str, typer.Option(envvar="OTA_S3_REGION", help="Region of the bucket.")] = "",
    direct_links: Annotated[
        bool,
        typer.Option(
            "--direct-links", help="Devices download from the S3 store itself; they must reach and trust it."
        ),
    ] = False,
    auto_accept: Annotated[
        bool, typer.Option("--auto-accept", help="Accept every device at once. For benches only.")
    ] = False,
    public_url: Annotated[
        str, typer.Option(help="Address in download links. Default: the one the device called.")
    ] = "",
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM): serve https; with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS|NETWORK",
            help="Believe X-Forwarded-Proto and X-Forwarded-For from this proxy. May be repeated.",
        ),
    ] = None,
    insecure_no_login: Annotated[
        bool, typer.Option("--insecure-no-login", help="Let everyone who reaches the address manage updates.")
    ] = False,
    ready_fd: Annotated[int, typer.Option(hidden=True, help="Write the address here once listening.")] = -1,
    bench_token_fd: Annotated[int, typer.Option(hidden=True, help="Read an admin token from here.")] = -1,
    parent: Annotated[int, typer.Option(hidden=True, help="Process to end with.")] = 0,
) -> None:
    """Run the control server: device API, management API and page in one process.

    The first start prints a setup link: whoever opens it makes the first user. There is no default password.

    It listens on this machine only, unless --host says otherwise; then give it a certificate
    (--tls-cert, --tls-key) or put it behind a proxy that has one (--trust-proxy). Devices in a QEMU user
    network reach it as http://10.0.2.2:PORT. State is kept in --data (or --database-url), and the server
    can be killed at any time.
    """
    if context.invoked_subcommand is not None:
        context.obj = Place(data, database_url)
        return
    _check(public_url, tls_cert, tls_key, trust_proxy or [])
    if direct_links and not artifact_store:
        raise UpdateError("--direct-links needs --artifact-store s3://…")
    if parent:
        _end_with(parent)
    import uvicorn

    from update_tools.server.app import create_app
    from update_tools.server.wire import TimedProtocol

    _set_up_log()
    settings = Settings(
        data=data,
        database_url=database_url,
        artifact_store=artifact_store,
        s3_endpoint=s3_endpoint,
        s3_region=s3_region,
        direct_links=direct_links,
        auto_accept=auto_accept,
        public_url=public_url,
        needs_login=not insecure_no_login,
        is_open=not insecure_no_login or not is_loopback(host),
    )
    with _told(data, database_url):
        application = create_app(settings)
    house = application.state.house
    listener = _listen(host, port)
    url = _url(listener, "https" if tls_cert else "http")
    if bench_token_fd >= 0:
        _take_bench_token(house.db, bench_token_fd)
    typer.echo(f"control server on {url}, data in {data}", err=True)
    _say_what_is_open(host, bool(tls_cert), bool(trust_proxy), settings)
    if settings.needs_login:
        _say_setup_link(house, public_url or url)
    if ready_fd >= 0:
        os.write(ready_fd, f"{url}\n".encode())
        os.close(ready_fd)
    config = uvicorn.Config(
        application,
        http=TimedProtocol,
        access_log=False,  # ours leaves out the query with its signatures
        log_config=None,
        server_header=False,
        proxy_headers=bool(trust_proxy),
        forwarded_allow_ips=trust_proxy or [],
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
        limit_concurrency=20_000,
    )
    uvicorn.Server(config).run(sockets=[listener])


# --- tokens and users ------------------------------------------------------------------------------------


@token_app.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="For the audit log and for revoking it.")],
    scope: Annotated[str, typer.Option(help="read, deploy or admin.")] = "read",
    days: Annotated[int | None, typer.Option(min=1, help="Days it works; default: until revoked.")] = None,
) -> None:
    """Make an API token and print it; it is not kept and cannot be shown again."""
    from update_tools.server import accounts

    with _at_desk(context) as session:
        _, text = accounts.add_token(session, name, scope, days=days)
    typer.echo(text)


@token_app.command("list")
def list_tokens(context: typer.Context, as_json: Json = False) -> None:
    """List the tokens; their texts are not kept."""
    from update_tools.server import accounts

    with _at_desk(context) as session:
        if as_json:
            _print_json(
                {
                    "name": entry.name,
                    "scope": entry.scope,
                    "user": entry.user.name if entry.user else None,
                    "used_at": entry.used_at.isoformat() if entry.used_at else None,
                }
                for entry in accounts.tokens(session)
            )
            return
        for entry in accounts.tokens(session):
            owner = entry.user.name if entry.user else "-"
            used = entry.used_at.date().isoformat() if entry.used_at else "never"
            typer.echo(f"{entry.name}\t{entry.scope}\t{owner}\tlast used {used}")


@token_app.command("revoke")
def revoke_token(context: typer.Context, name: str) -> None:
    """Revoke a token; a running server refuses it from now on."""
    from update_tools.server import accounts

    with _at_desk(context) as session:
        found = [entry for entry in accounts.tokens(session) if entry.name == name]
        if not found:
            raise UpdateError(f"there is no token {name}", hint="ota server token list")
        accounts.revoke(session, found[0].id)


@user_app.command("add")
def add_user(
    context: typer.Context,
    name: str,
    role: Annotated[str, typer.Option(help="read, deploy or admin.")] = "read",
) -> None:
    """Add a user; the password is asked for."""
    from update_tools.server import accounts

    password = _ask_password()
    with _at_desk(context) as session:
        accounts.add_user(session, accounts.Passwords(), name, password, role)


@user_app.command("password")
def set_password(context: typer.Context, name: str) -> None:
    """Give a user a new password, for instance a forgotten one; their sessions end."""
    from update_tools.server import accounts

    password = _ask_password()
    with _at_desk(context) as session:
        user = accounts.user_named(session, name)
        accounts.set_password(session, accounts.Passwords(), user, password)


@user_app.command("list")
def list_users(context: typer.Context, as_json: Json = False) -> None:
    """List the users."""
    from update_tools.server import accounts

    with _at_desk(context) as session:
        if as_json:
            _print_json(
                {
                    "name": user.name,
                    "role": user.role,
                    "login_at": user.login_at.isoformat() if user.login_at else None,
                }
                for user in accounts.users(session)
            )
            return
        for user in accounts.users(session):
            last = user.login_at.date().isoformat() if user.login_at else "never"
            typer.echo(f"{user.name}\t{user.role}\tlast login {last}")


@user_app.command("remove")
def remove_user(context: typer.Context, name: str) -> None:
    """Remove a user with sessions and tokens."""
    from update_tools.server import accounts

    with _at_desk(context) as session:
        accounts.remove_user(session, accounts.user_named(session, name))


def _print_json(rows: Iterable[dict[str, object]]) -> None:
    typer.echo(json.dumps(list(rows), indent=2, ensure_ascii=False))


@contextmanager
def _at_desk(context: typer.Context) -> Iterator[Session]:
    """A transaction of whoever may read the data folder: they are admin anyway."""
    place = context.obj
    assert isinstance(place, Place)
    if not place.database_url and not (place.data / "server.db").exists():
        raise UpdateError(f"there is no server in {place.data}", hint="ota server --data FOLDER token …")
    with _told(place.data, place.database_url):
        db = open_database(place.data, place.database_url)
    try:
        with db.write(Who(name="command line", scope="admin")) as session:
            yield session
    finally:
        db.close()


@contextmanager
def _told(data: Path, database_url: str) -> Iterator[None]:
    """A folder or database that cannot be used is wrong input: told as an error, without a traceback."""
    from sqlalchemy.exc import DatabaseError, OperationalError

    where = f"the database {database_url.rpartition('@')[2]}" if database_url else f"the data folder {data}"
    try:
        yield
    except OSError as error:
        raise UpdateError(f"cannot use {where}: {error.strerror}", hint="--data names a folder") from error
    except DatabaseError as error:
        if type(error) not in {DatabaseError, OperationalError}:
            raise  # wrong SQL: a bug
        raise UpdateError(f"cannot use {where}: {str(error.orig).strip()}") from error


def _ask_password() -> str:
    if not sys.stdin.isatty():
        raise UpdateError("nobody can be asked for the password", hint="run it on a terminal")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


# --- start -----------------------------------------------------------------------------------------------


def _check(public_url: str, tls_cert: Path | None, tls_key: Path | None, proxies: list[str]) -> None:
    if public_url and not public_url.startswith(("http://", "https://")):
        raise UpdateError(f"--public-url {public_url!r} is not an http or https address")
    if (tls_cert is None) != (tls_key is None):
        raise UpdateError("--tls-cert and --tls-key go together")
    for name, path in (("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        if path is not None and not os.access(path, os.R_OK):
            raise UpdateError(f"{name} {path} cannot be read")
    if tls_cert is not None and tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls_cert, tls_key, lambda: b"")
        except (ssl.SSLError, OSError) as error:
            raise UpdateError(
                f"--tls-cert {tls_cert} and --tls-key {tls_key} cannot be used: {error.strerror or error}",
                hint="a certificate and its private key, both PEM, the key without a passphrase",
            ) from error
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise UpdateError(f"--trust-proxy {proxy!r} is no address or network: {error}") from error


def _set_up_log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "uvicorn.error", "botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _say_what_is_open(host: str, has_tls: bool, has_proxy: bool, settings: Settings) -> None:
    if is_loopback(host):
        return
    if not settings.needs_login:
        typer.echo(
            f"WARNING: without a login, everyone who reaches {host} can deploy to every device", err=True
        )
    elif not has_tls and not has_proxy:
        typer.echo(
            "WARNING: passwords and tokens go over the network unencrypted; give --tls-cert and --tls-key,"
            " or put a proxy with TLS in front and name it with --trust-proxy",
            err=True,
        )


def _say_setup_link(house: Any, url: str) -> None:
    from update_tools.server import accounts

    with house.db.read() as session:
        if not accounts.needs_setup(session):
            return
    key = accounts.setup_key(house.signer)
    typer.echo(
        f"no user yet; make the first one here, within a day: {url.rstrip('/')}/setup?key={key}", err=True
    )


def _take_bench_token(db: Any, descriptor: int) -> None:
    from update_tools.server import accounts

    with os.fdopen(descriptor) as pipe:
        text = pipe.read().strip()
    if len(text) < 32:
        raise UpdateError("--bench-token-fd: a token has at least 32 characters")
    with db.write(Who(name="command line")) as session:
        accounts.add_bench_token(session, text)


def _end_with(parent: int) -> None:
    """Be told to stop when the process that started us is gone, however it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != parent:
        raise UpdateError("the process that wanted this server is gone")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # The last bytes of an answer are the system's to deliver, but not for ever. Connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TAKE_TIMEOUT_MS)
    except OSError as error:
        raise UpdateError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="is another server running? try --port 0",
        ) from error
    return listener


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
