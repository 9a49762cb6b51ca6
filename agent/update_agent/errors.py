# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one class per room. Library code raises; only `__main__` prints and exits."""

from __future__ import annotations


class UpdateError(Exception):
    """Base of all expected errors: what was being done to what and what came back, and what to try."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(UpdateError):
    """mender.conf, device_type, or the command line."""


class StoreError(UpdateError):
    """The saved state could not be read or written."""


class LoopError(StoreError):
    """The state was saved so often that the update must be going in circles."""


class ProcError(UpdateError):
    """A program could not be started."""


class ScriptError(UpdateError):
    """State scripts: a hook failed."""


class ArtifactError(UpdateError):
    """The artifact is broken, not trusted, or not for this device."""


class PayloadError(UpdateError):
    """An update module call failed."""


class BootloaderError(UpdateError):
    """The U-Boot environment could not be read or written."""


class SlotError(UpdateError):
    """A root partition is not what it must be for writing or booting."""


class ServerError(UpdateError):
    """The server refused, or answered nonsense."""


class ClockError(ServerError):
    """The server's certificate is refused for the time: this device's clock may be wrong."""


class TransferError(UpdateError):
    """A download or a child process that carries one broke."""


class ControlError(UpdateError):
    """An update control map is not valid."""


class IdleError(ControlError):
    """A command is for an update, and there is none that it could be for."""
