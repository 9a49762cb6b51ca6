# SPDX-License-Identifier: Apache-2.0
# Stands for U-Boot's recipe: a .config that begins as the defaults, which fragments are merged into.
SUMMARY = "Stub of U-Boot"
LICENSE = "GPL-2.0-or-later"
PROVIDES = "virtual/bootloader"
SRC_URI = "file://defconfig file://merge_config.sh"
S = "${UNPACKDIR}"
B = "${WORKDIR}/build"
do_configure() {
    cp ${S}/defconfig ${B}/.config
    mkdir -p ${S}/scripts/kconfig
    install -m 0755 ${S}/merge_config.sh ${S}/scripts/kconfig/merge_config.sh
}
do_install() {
    install -d ${D}${sysconfdir}
    echo "/boot/uboot.env 0x0000 0x4000" > ${D}${sysconfdir}/fw_env.config
    echo "bootcmd=run distro_bootcmd" > ${D}${sysconfdir}/u-boot-initial-env
}
