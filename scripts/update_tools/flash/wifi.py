# SPDX-License-Identifier: Apache-2.0
"""A Wi-Fi network as wpa_supplicant reads it, and where its password comes from: never the command line."""

from __future__ import annotations

import getpass
import os
import re
import sys
from typing import TYPE_CHECKING

from .errors import FlashError

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "OTA_WIFI_PASSWORD"


def configuration(ssid: str, password: str, country: str = "") -> str:
    """A file for wpa_supplicant: WPA2 and WPA3, or an open network if the password is empty.

    A password of 64 hexadecimal digits is the key itself. Raises FlashError for what no network can have.
    """
    name = os.fsencode(ssid)  # the bytes that were typed: a network's name need not be text
    if not 1 <= len(name) <= 32:
        raise FlashError(f"--wifi: a network's name has 1 to 32 bytes, not {len(name)}")
    if country and not re.fullmatch("[A-Z]{2}", country):
        raise FlashError(f"--wifi-country {country!r} is no country", hint="two letters, as in DE")
    if not password:
        security = ["key_mgmt=NONE"]
    elif re.fullmatch("[0-9a-fA-F]{64}", password):
        security = [f"psk={password.lower()}", "key_mgmt=WPA-PSK"]
    elif re.fullmatch("[ -~]{8,63}", password):
        # Taken up to the last quotation mark, so none needs an escape. WPA3 wants the words, not their hash.
        security = [f'psk="{password}"', "key_mgmt=WPA-PSK SAE", "ieee80211w=1"]
    else:
        raise FlashError(
            "the Wi-Fi password cannot be one", hint="8 to 63 printable ASCII characters, or 64 hex digits"
        )
    lines = ["ctrl_interface=/run/wpa_supplicant", *([f"country={country}"] if country else []), "network={"]
    lines += [f"\t{line}" for line in (f"ssid={name.hex()}", "scan_ssid=1", *security)]
    return "\n".join([*lines, "}", ""])


def password(ssid: str, file: Path | None) -> str:
    """From the file, else from the environment, else asked for. Raises FlashError if nobody can be asked."""
    if file is not None:
        try:
            return file.read_text().rstrip("\r\n")
        except OSError as error:
            raise FlashError(f"cannot read the Wi-Fi password from {file}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise FlashError(
                f"the Wi-Fi password in {file} is no text in UTF-8"
            ) from None  # says no byte of it
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise FlashError(
            f"the password of Wi-Fi {ssid!r} is missing",
            hint=f"--wifi-password-file FILE, or {VARIABLE} in the environment; --wifi-open: it has none",
        )
    return getpass.getpass(f"Password of Wi-Fi {ssid}: ")
