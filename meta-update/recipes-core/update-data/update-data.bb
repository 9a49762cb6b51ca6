# SPDX-License-Identifier: MIT
SUMMARY = "Lets the data partition take the whole card"
DESCRIPTION = "At boot, makes the last partition and its file system as large as the card has room for. \
An image is built small; the card it is written to is what it is."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "file://update-grow-data.in file://update-grow-data.init file://update-grow-data.service"

inherit update-template systemd update-rc.d

UPDATE_TEMPLATES = "update-grow-data.in:update-grow-data"

SYSTEMD_SERVICE:${PN} = "update-grow-data.service"
INITSCRIPT_NAME = "update-grow-data"
INITSCRIPT_PARAMS = "start 50 S ."

do_install() {
    install -D -m 0755 ${B}/update-grow-data ${D}${sbindir}/update-grow-data
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -D -m 0644 ${S}/update-grow-data.service ${D}${systemd_system_unitdir}/update-grow-data.service
    else
        install -D -m 0755 ${S}/update-grow-data.init ${D}${sysconfdir}/init.d/update-grow-data
    fi
}

FILES:${PN} = "${sbindir} ${sysconfdir}/init.d ${systemd_system_unitdir}"
RDEPENDS:${PN} = "e2fsprogs-resize2fs util-linux-partx util-linux-sfdisk"
