# SPDX-License-Identifier: Apache-2.0
"""URLs of servers and proxies: taken apart, put together, and shown without their secrets.

`urllib.parse` knows every scheme there ever was; with `re`, `ipaddress` and Unicode's tables it is 2 MB.
"""

from __future__ import annotations

from update_agent.errors import ServerError

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
# What a link may have as it is: all but blanks, control characters and what is not ASCII.
_IN_TARGETS = _UNRESERVED | frozenset(b"!#$%&'()*+,/:;=?@[]~|{}^\\")
_HEX = "0123456789abcdefABCDEF"


class Url:
    """An http or https URL, taken apart for a request. Raises ServerError for anything else.

    `user`: what stands before an `@`, as it is written.
    """

    __slots__ = ("host", "is_tls", "port", "target", "text", "user")

    def __init__(self, text: str) -> None:
        scheme, separator, rest = text.strip().partition("://")
        scheme = scheme.lower()
        rest = rest.partition("#")[0]
        ends = [end for end in (rest.find("/"), rest.find("?")) if end >= 0]
        authority, path = rest[: min(ends, default=len(rest))], rest[min(ends, default=len(rest)) :]
        self.user, _, place = authority.rpartition("@")
        if place.startswith("["):
            self.host, closing, port = place[1:].partition("]")
            is_sane = bool(closing) and ":" in self.host and port[:1] in ("", ":")
            port = port[1:]
        else:
            self.host, _, port = place.partition(":")
            is_sane = not set(self.host) & set("[]:\\")
        self.host = self.host.lower()
        if scheme not in ("http", "https") or not separator or not self.host:
            raise ServerError(f"{without_query(text)!r} is not an http:// or https:// URL")
        if not is_sane or not self.host.isprintable() or " " in self.host:
            raise ServerError(f"{without_query(text)!r} is not a URL: wrong host name")
        if port and not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
            raise ServerError(f"{without_query(text)!r} is not a URL: wrong port")
        self.text = text
        self.is_tls = scheme == "https"
        self.port = int(port or 0) or (443 if self.is_tls else 80)
        self.target = _quoted(path if path.startswith("/") else f"/{path}", _IN_TARGETS)

    @property
    def origin(self) -> str:
        """Where a connection for it leads."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as in the Host header."""
        is_default = self.port == (443 if self.is_tls else 80)
        return self.place.rpartition(":")[0] if is_default else self.place

    @property
    def place(self) -> str:
        """Host and port, always both."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def resolve(self, location: str) -> str:
        """The URL that a redirect leads to; it may be relative."""
        scheme, separator, _ = location.partition(":")
        if separator and scheme[:1].isalpha() and scheme.replace("+", "").replace("-", "").isalnum():
            return location
        if location.startswith("//"):
            return f"{'https' if self.is_tls else 'http'}:{location}"
        if location.startswith("/"):
            return self.origin + location
        path, _, _ = self.target.partition("?")
        if not location or location[0] in "?#":
            return self.origin + path + location
        location, mark, query = location.partition("?")
        steps = path.split("/")[1:-1]
        *names, last = location.split("/")
        for name in (*names, *([last, ""] if last in (".", "..") else [last])):
            if name == "..":
                del steps[-1:]
            elif name != ".":
                steps.append(name)
        return f"{self.origin}/{'/'.join(steps)}{mark}{query}"


def without_query(url: str) -> str:
    """The URL for log lines: queries and user parts carry secrets (signed links)."""
    scheme, separator, rest = url.partition("://")
    rest = rest.partition("?")[0].partition("#")[0]
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def join(server: str, path: str) -> str:
    """Server URL and path with exactly one `/` between; the server URL may have a path of its own."""
    return f"{server.rstrip('/')}/{path.lstrip('/')}"


def quote(text: str) -> str:
    """A value for a path or a query."""
    return _quoted(text, _UNRESERVED)


def unquote(text: str) -> str:
    """The text without its percent signs."""
    first, *parts = text.split("%")
    data = bytearray(first.encode())
    for part in parts:
        code = part[:2]
        if len(code) == 2 and not code.strip(_HEX):
            data.append(int(code, 16))
            data += part[2:].encode()
        else:
            data += b"%" + part.encode()
    return data.decode("utf-8", "replace")


def _quoted(text: str, keep: frozenset[int]) -> str:
    return "".join(
        chr(byte) if byte in keep else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape")
    )
