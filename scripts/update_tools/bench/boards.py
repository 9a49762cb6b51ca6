# SPDX-License-Identifier: Apache-2.0
"""The table of virtual boards. What differs from board to board is in its row, nowhere else."""

from __future__ import annotations

from .tools import BenchError


class Kind:
    """A kind of board: how its parts are built and how QEMU is started.

    `qemu` words may use {disk}, {uboot}, {mac} and {console} (the console's character device).
    """

    __slots__ = (
        "cross",
        "deb_arch",
        "defconfig",
        "fragments",
        "kernel_image",
        "kernel_package",
        "machine",
        "modules",
        "qemu",
    )

    def __init__(
        self,
        *,
        machine: str,
        deb_arch: str,
        cross: str,
        defconfig: str,
        fragments: tuple[str, ...],
        kernel_package: str,
        kernel_image: str,
        modules: tuple[str, ...],
        qemu: tuple[str, ...],
    ) -> None:
        self.machine = machine
        """Name in the layer: conf/update/machine/MACHINE.inc, and the device type."""
        self.deb_arch = deb_arch
        self.cross = cross
        """Prefix of the cross compiler."""
        self.defconfig = defconfig
        self.fragments = fragments
        """U-Boot configuration fragments of the layer, in this order."""
        self.kernel_package = kernel_package
        self.kernel_image = kernel_image
        """Form of the kernel in the slot ("Image.gz", "zImage"); its name is the layer's UPDATE_KERNEL."""
        self.modules = modules
        """Kernel modules the initramfs loads, with parameters; what they depend on comes by itself."""
        self.qemu = qemu


# What both machines of QEMU's "virt" have: a card on a PCI host controller, and a network.
_VIRT_MODULES = ("sdhci-pci", "mmc_block", "ext4", "virtio_pci", "virtio_net", "virtio_rng")
_VIRT_DEVICES = (
    *("-m", "512", "-bios", "{uboot}", "-serial", "chardev:{console}"),
    *("-drive", "if=none,id=card,file={disk},format=raw"),
    *("-device", "sdhci-pci", "-device", "sd-card,drive=card"),
    *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,mac={mac},romfile="),
    *("-device", "virtio-rng-pci"),
)

BOARDS = {
    "virt64": Kind(
        machine="virt64",
        deb_arch="arm64",
        cross="aarch64-linux-gnu-",
        defconfig="qemu_arm64_defconfig",
        fragments=("update-env.cfg", "update-virt.cfg"),
        kernel_package="linux-image-arm64",
        kernel_image="Image.gz",
        # A minute: a system on a busy desk is not one that hangs.
        modules=(*_VIRT_MODULES, "i6300esb heartbeat=60"),
        qemu=(
            *("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", "2"),
            *("-accel", "tcg,thread=single", "-device", "i6300esb", "-action", "watchdog=reset"),
            *_VIRT_DEVICES,
        ),
    ),
    "virt32": Kind(
        machine="virt32",
        deb_arch="armhf",
        cross="arm-linux-gnueabihf-",
        defconfig="qemu_arm_defconfig",
        fragments=("update-env.cfg", "update-virt.cfg"),
        kernel_package="linux-image-armmp",
        kernel_image="zImage",
        modules=_VIRT_MODULES,
        qemu=(
            # Debian's kernel for armv7 has no driver of a watchdog that QEMU has here.
            # U-Boot of 32 bits does not reach PCI's registers above 4 GiB; with two processors on one thread
            # of the host, Linux does not come up.
            *("qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15", "-smp", "1"),
            *("-accel", "tcg,thread=single"),
            *_VIRT_DEVICES,
        ),
    ),
}


def kind(name: str) -> Kind:
    """The row of a kind of board. Raises BenchError for an unknown name."""
    try:
        return BOARDS[name]
    except KeyError:
        raise BenchError(f"no board is called {name}", hint=f"there is {', '.join(BOARDS)}") from None
