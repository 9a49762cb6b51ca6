# SPDX-License-Identifier: MIT
SUMMARY = "Where U-Boot keeps its environment, for fw_printenv and fw_setenv"
DESCRIPTION = "Made from the offsets that U-Boot's configuration, the image and the agent use, so that all of \
them mean the same place on the card."
SECTION = "bootloaders"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "file://fw_env.config.in"

inherit update-template

UPDATE_TEMPLATES = "fw_env.config.in:fw_env.config"

do_install() {
    install -d ${D}${sysconfdir}
    install -m 0644 ${B}/fw_env.config ${D}${sysconfdir}/fw_env.config
}

CONFFILES:${PN} = "${sysconfdir}/fw_env.config"
RDEPENDS:${PN} = "libubootenv-bin"
