# SPDX-License-Identifier: Apache-2.0
"""`json`, `signal` and `socket` as far as the idle daemon and quick commands can afford them.

The modules of these names import `re` and `enum`: 9 ms of every start and 2 MB that stay. Here are the C
modules beneath them, and of `json` the two functions that work without.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal
    import _socket as socket

__all__ = ["accept", "is_text", "json", "signal", "socket"]
_BLANK = " \t\n\r"


class _Scanning:
    """What `_json` asks of a decoder."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int

    def __init__(self, object_pairs_hook: Callable[..., object] | None) -> None:
        self.object_pairs_hook = object_pairs_hook

    def parse_constant(self, name: str) -> object:
        """NaN and Infinity are no JSON: the complete module says so, or knows what to do with them."""
        raise StopIteration


class Json:
    """As the module `json`."""

    @staticmethod
    def loads(text: str | bytes, **options: Any) -> Any:
        """The decoded text. Whatever is unusual about it is left to the complete module, like its errors."""
        try:
            document = text if isinstance(text, str) else text.decode()
            context: Any = _Scanning(options.get("object_pairs_hook"))
            scan = _json.make_scanner(context)
            start = len(document) - len(document.lstrip(_BLANK))
            value, end = scan(document, start)
            if not document[end:].strip(_BLANK):
                return value
        except (StopIteration, UnicodeDecodeError, SystemError):
            pass  # SystemError: up to Python 3.12 it cannot name an error while `json` is not imported
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        import json

        return json.loads(text, **options)

    @staticmethod
    def dumps(value: object, *, sort_keys: bool = False, separators: tuple[str, str] = (", ", ": ")) -> str:
        """The value as text, in ASCII."""
        item, key = separators
        encode = _json.make_encoder(
            None, _refuse, _json.encode_basestring_ascii, None, key, item, sort_keys, False, True
        )
        return "".join(encode(value, 0))


def is_text(value: object) -> bool:
    """A text that can be stored, printed, and handed to a program: "\\ud800" is JSON, but cannot."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be JSON")


json = Json


def accept(listener: socket.socket) -> socket.socket:
    """The connection that waits at a listening socket. Raises OSError."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return socket.socket(fileno=fd)
