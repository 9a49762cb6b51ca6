# SPDX-License-Identifier: Apache-2.0
"""The boot loader: its environment, through the tools of libubootenv, u-boot-tools or grub-mender-grubenv.

U-Boot keeps it as one checksummed block (two, when redundant); a write replaces the whole block. So a change
of several variables is one write, atomic under power loss when the environment is redundant.
"""

from __future__ import annotations

import os

from update_agent.errors import BootloaderError, ConfigError, ProcError
from update_agent.loop import plain_wait
from update_agent.proc import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Wait
    from update_agent.proc import Result
    from update_agent.slots import Slot

    class Bootloader(Protocol):
        def read(self, *names: str) -> dict[str, str]:
            """Return those variables that are set; all, when none is named. Raises BootloaderError."""

        def write(self, values: Mapping[str, str]) -> None:
            """Set all values in one environment write, or none; an empty value deletes.

            Values already set are not written again. Raises BootloaderError, also when reading back differs.
            """

        def fill(self, root: Slot) -> None:
            """Take what it starts this slot with out of the slot, durable on return. Raises UpdateError."""

        def reboot_command(self) -> list[str]:
            """The program that reboots into what `mender_boot_part` names."""

        def next_boot(self) -> list[str]:
            """At the start of the agent: the program that reboots into another system, if that is to run."""

        def is_started_once(self) -> bool:
            """The running system was started for this boot only, whatever is saved; or BootloaderError."""


_TIMEOUT_S = 60.0
_FW_ENV_CONFIG = "/etc/fw_env.config"
# What the tools say on stderr before they go on, with exit code 0, without the stored environment.
_NOT_THE_STORED_ONE = (
    b"using default",  # libubootenv: "Cannot read environment, using default" (compiled in or -f file)
    b"Bad CRC",  # u-boot-tools: "Warning: Bad CRC, using default environment"
)
_BROKEN_HINT = (
    "both copies are damaged or were never written; it is not touched, because writing now would replace it "
    "by an almost empty one: check /etc/fw_env.config, then restore it with saveenv in U-Boot or mkenvimage"
)


class UBoot:
    """The environment as two command-line tools see it; they find it through /etc/fw_env.config."""

    def __init__(
        self, fw_printenv: str = "fw_printenv", fw_setenv: str = "fw_setenv", wait: Wait = plain_wait
    ) -> None:
        self._print = fw_printenv
        self._set = fw_setenv
        self._wait = wait

    def read(self, *names: str) -> dict[str, str]:
        """Return the variables that are set, all of them when no name is given.

        Raises BootloaderError when the tool fails, when it shows a default instead of the stored environment,
        and when the canary says that the boot loader uses another one.
        """
        # Always all variables: tools differ in what they print, and exit with, for a name that is not set.
        result, stdout, stderr = self._run([self._print], "read the boot environment")
        said = stderr.decode(errors="backslashreplace").strip().replace("\n", "; ")
        if any(sign in stderr for sign in _NOT_THE_STORED_ONE):
            raise BootloaderError(
                f"the boot environment is damaged: {self._print} says {said!r}", hint=_BROKEN_HINT
            )
        if not result.ok:
            raise BootloaderError(
                f"{self._print} {result.describe()} while reading the boot environment"
                + (f": {said}" if said else ""),
                hint="does /etc/fw_env.config name the device and offset U-Boot uses?",
            )
        values = {}
        for line in stdout.decode(errors="surrogateescape").split("\n"):
            name, equals, value = line.partition("=")
            if equals:
                values[name] = value
        if values.get("mender_check_saveenv_canary") == "1" and values.get("mender_saveenv_canary") != "1":
            raise BootloaderError(
                "mender_check_saveenv_canary is 1 but mender_saveenv_canary is not: the boot loader does not "
                f"use the environment that {self._print} reads",
                hint="does /etc/fw_env.config name the device and offset the boot loader saves to?",
            )
        return {name: values[name] for name in names if name in values} if names else values

    def write(self, values: Mapping[str, str]) -> None:
        """Set all values in one environment write, or none; an empty value deletes.

        Values already set are not written again. Raises BootloaderError before writing when the environment
        cannot be read, and after it when reading back shows something else.
        """
        wanted = ", ".join(f"{name}={value}" for name, value in values.items())
        for name, value in values.items():
            if not name or set(name) & set("= \t\n\0#") or set(value) & set("\n\0"):
                raise BootloaderError(f"{name!r}={value!r} cannot be stored in a boot environment")
        before = self.read()
        if _holds(before, values):
            return
        # libubootenv skips lines written `name value` without a word, so `=`; and everything is read back.
        script = "".join(f"{name}={value}\n" for name, value in values.items()).encode()
        result, _, stderr = self._run([self._set, "-s", "-"], f"set {wanted}", script)
        if not result.ok:
            said = stderr.decode(errors="backslashreplace").strip().replace("\n", "; ")
            raise BootloaderError(
                f"{self._set} {result.describe()} while setting {wanted}" + (f": {said}" if said else ""),
                hint="is the device that /etc/fw_env.config names writable?",
            )
        after = self.read()
        if not _holds(after, values):
            found = ", ".join(f"{name}={after.get(name, '')}" for name in values)
            raise BootloaderError(
                f"{self._set} was to set {wanted} and exited with 0, but the environment now has {found}",
                hint="do both tools come from one package and use one /etc/fw_env.config?",
            )

    def fill(self, _root: Slot) -> None:
        """Nothing: U-Boot and GRUB read the slot's own /boot."""

    def reboot_command(self) -> list[str]:
        """Any reboot will do: what starts is in the environment."""
        return ["reboot"]

    def next_boot(self) -> list[str]:
        """Never: it has started what the environment says."""
        return []

    def is_started_once(self) -> bool:
        """Never: what is for one boot is in the environment as well."""
        return False

    def _run(self, argv: Sequence[str], what: str, stdin: bytes = b"") -> tuple[Result, bytes, bytes]:
        try:
            return output(argv, timeout_s=_TIMEOUT_S, stdin=stdin, wait=self._wait)
        except ProcError as error:
            raise BootloaderError(
                f"cannot {what}: {error.message}",
                hint="the image needs libubootenv-bin (Yocto) or libubootenv-tool (Debian)",
            ) from error


def _holds(environment: Mapping[str, str], values: Mapping[str, str]) -> bool:
    return all(environment.get(name, "") == value for name, value in values.items())


def find(
    config: Config | None = None, log: Log | None = None, wait: Wait = plain_wait, *, path: str | None = None
) -> Bootloader:
    """The boot loader of this device, by `Bootloader` in mender.conf: `uboot`, `tryboot`, or empty.

    Empty: `tryboot` where mender.conf has its partitions and nothing tells of U-Boot, else `uboot`, which is
    GRUB if its tools are installed. Raises ConfigError for any other word.
    """
    if config is not None and log is not None:
        kind = config.bootloader
        if kind not in {"", "uboot", "tryboot"}:
            raise ConfigError(
                f"Bootloader is {kind!r}", hint="mender.conf may have uboot or tryboot, or leave it out"
            )
        if not kind and config.autoboot_part and not os.path.exists(_FW_ENV_CONFIG):
            kind = "tryboot"
        if kind == "tryboot":
            from update_agent.tryboot import Tryboot

            return Tryboot(config, log, wait)
    for directory in (os.environ.get("PATH", os.defpath) if path is None else path).split(":"):
        if os.access(os.path.join(directory, "grub-mender-grubenv-print"), os.X_OK):
            return UBoot("grub-mender-grubenv-print", "grub-mender-grubenv-set", wait)
    return UBoot(wait=wait)
