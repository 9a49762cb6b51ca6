# SPDX-License-Identifier: Apache-2.0
"""Leaving a system on trial in which the agent cannot work: nobody else would ever decide about it.

Without the datastore nothing is known of the update, so nothing can be committed. The boot loader goes back
at the next boot anyway; here we see to it that there is one, and say why.
"""

from __future__ import annotations

from update_agent import bootloader
from update_agent.errors import UpdateError
from update_agent.loop import plain_wait
from update_agent.machine import reboot
from update_agent.payload import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.config import Config
    from update_agent.log import Log


def leave(config: Config, log: Log, reason: str) -> None:
    """Roll back and reboot if the running system is on trial, and wait for that; else return at once.

    The reboot comes after the boot environment has the old system again, so it is one, never a loop.
    """
    from update_agent.rootfs_image import RootfsImage
    from update_agent.slots import Slots

    boot = bootloader.find(config, log)
    slots = Slots(config.rootfs_part_a, config.rootfs_part_b)
    try:
        if RootfsImage(Tree(config.tree_dir()), slots, boot, log).leave_trial(reason):
            log.error(f"Going back to the system before this one: {reason}")
            raise reboot(boot.reboot_command(), log, plain_wait)
    except UpdateError as error:
        log.error(f"If this system is on trial, it cannot be left: {error}")
