# SPDX-License-Identifier: Apache-2.0
"""Virtual boards: real U-Boot, real kernel and a real A/B card in QEMU, made from Debian's packages.

`boards` is the table of boards, `layer` reads the machine's facts where the Yocto layer keeps them, `debs`,
`uboot`, `rootfs` and `image` make a card, `qemu.Board` is the board with its power switch and console.
"""
