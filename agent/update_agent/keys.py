# SPDX-License-Identifier: Apache-2.0
"""The device key: made, read and used by the `openssl` program (options of OpenSSL 3.0 … 3.5)."""

from __future__ import annotations

import binascii
import fcntl
import os

from update_agent import proc, store
from update_agent.errors import ServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from update_agent.config import Config

    class Log(Protocol):
        def info(self, message: str) -> None: ...


_TIMEOUT_S = 60.0  # a hardware key may be slow; making an Ed25519 key is not
_ED25519 = bytes.fromhex("06032b6570")  # object identifiers in DER, as they stand in a public key
_RSA = bytes.fromhex("06092a864886f70d010101")
_EC = bytes.fromhex("06072a8648ce3d0201")


def kind(public_pem: str) -> str:
    """`ed25519`, `rsa` or `ecdsa`, read from the algorithm identifier. Raises ServerError for other keys."""
    lines = public_pem.strip().splitlines()
    try:
        der = binascii.a2b_base64("".join(lines[1:-1]), strict_mode=True)
    except (ValueError, binascii.Error) as error:
        raise ServerError(f"the public key is not PEM: {error}") from error
    for name, identifier in (("ed25519", _ED25519), ("rsa", _RSA), ("ecdsa", _EC)):
        if identifier in der[:32]:
            return name
    raise ServerError("the device key is of an unknown kind", hint="Ed25519, RSA and ECDSA keys can be used")


def _openssl(
    arguments: Sequence[str], *, doing: str, hint: str = "", stdin: bytes = b"", passphrase: str | None = None
) -> bytes:
    """What openssl prints. With an empty passphrase an encrypted key fails, instead of asking a terminal."""
    fd = -1
    argv = ["openssl", *arguments]
    try:
        if passphrase is not None:
            # In a file in memory: everybody can read the arguments of a process.
            fd = os.memfd_create("passphrase")
            os.write(fd, passphrase.encode() + b"\n")
            argv += ["-passin", f"file:/proc/{os.getpid()}/fd/{fd}"]
        result, stdout, stderr = proc.output(argv, timeout_s=_TIMEOUT_S, stdin=stdin)
    finally:
        if fd >= 0:
            os.close(fd)
    if not result.ok or not stdout:
        lines = stderr.decode(errors="replace").strip().splitlines()
        reason = f": {lines[0][:200]}" if lines else ""
        raise ServerError(f"{doing} failed, openssl {arguments[0]} {result.describe()}{reason}", hint=hint)
    return stdout


class DeviceKey:
    """The private key that proves the device's identity: a configured one, else the generated one."""

    def __init__(self, config: Config, log: Log) -> None:
        self._log = log
        self._own_path = config.key_file()
        configured = config.auth_private_key or config.https_client_key
        self.location = configured or self._own_path
        self._is_own = not configured
        self._engine = config.auth_engine if config.auth_private_key else config.https_client_engine
        if not configured:
            self._engine = ""
        self._passphrase = config.key_passphrase
        self._public_pem = ""

    def ensure(self, *, force: bool = False) -> None:
        """Generate the key if there is none; with `force`, in any case. A configured key is never generated.

        An existing key is not touched, even if it is broken: the device would become another one for the
        server. After return a new key is durable. Raises ServerError.
        """
        if not self._is_own or (os.path.exists(self._own_path) and not force):
            return
        directory = os.path.dirname(self._own_path)
        try:
            lock_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ServerError(
                f"cannot make a device key in {directory}: {os.strerror(error.errno or 0)}",
                hint="is the data partition mounted?",
            ) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)  # two processes must not each make a key
            if os.path.exists(self._own_path) and not force:
                return
            pem = _openssl(["genpkey", "-algorithm", "ED25519"], doing="making the device key")
            store.replace(self._own_path, pem, 0o600)
        except OSError as error:
            raise ServerError(
                f"cannot write the device key {self._own_path}: {os.strerror(error.errno or 0)}",
                hint="is the data partition mounted, writable and not full?",
            ) from error
        finally:
            os.close(lock_fd)
        self._public_pem = ""
        self._log.info(f"Made a new device key, {self._own_path}")

    def public_pem(self) -> str:
        """The public key as PEM (PKIX), with its trailing newline. Raises ServerError for a broken key."""
        if not self._public_pem:
            form = ["-engine", self._engine, "-inform", "ENGINE"] if self._engine else []
            hint = (
                "is it encrypted (--passphrase-file)? It is never replaced by itself: a new one makes this a "
                "new device for the server"
            )
            output = _openssl(
                ["pkey", *form, "-in", self.location, "-pubout"],
                doing=f"reading the device key {self.location}",
                hint=hint,
                passphrase=self._passphrase,
            )
            self._public_pem = output.decode("ascii", errors="replace")
        return self._public_pem

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`: PKCS#1 v1.5 or ASN.1 ECDSA with SHA-256, or pure Ed25519."""
        doing = f"signing with the device key {self.location}"
        form = ["-engine", self._engine, "-keyform", "ENGINE"] if self._engine else []
        secret = self._passphrase
        if kind(self.public_pem()) != "ed25519":
            arguments = ["dgst", "-sha256", *form, "-sign", self.location]
            return _openssl(arguments, doing=doing, stdin=data, passphrase=secret)
        # Ed25519 needs two passes over the data, so openssl wants a file with a size: one in memory.
        fd = os.memfd_create("body")
        try:
            os.write(fd, data)
            path = f"/proc/{os.getpid()}/fd/{fd}"
            arguments = ["pkeyutl", "-sign", "-rawin", *form, "-inkey", self.location, "-in", path]
            return _openssl(arguments, doing=doing, passphrase=secret)
        finally:
            os.close(fd)
