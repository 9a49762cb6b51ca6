# SPDX-License-Identifier: MIT
SUMMARY = "Keeps what makes a device itself on the data partition"
DESCRIPTION = "Machine ID, SSH host keys and the agent's store: made at first boot, the same in both slots, and \
there after every update, whether the root file system can be written or not."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = " \
    file://dropbearkey.conf \
    file://sshdgenkeys.conf \
    file://update-identity.in \
    file://update-identity.init \
    file://update-identity.service \
"

inherit update-template systemd update-rc.d

UPDATE_TEMPLATES = "update-identity.in:update-identity"

SYSTEMD_SERVICE:${PN} = "update-identity.service"
INITSCRIPT_NAME = "update-identity"
INITSCRIPT_PARAMS = "start 51 S ."

do_install() {
    install -d -m 0700 ${D}/data/identity
    install -D -m 0755 ${B}/update-identity ${D}${sbindir}/update-identity
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        units=${D}${systemd_system_unitdir}
        install -D -m 0644 ${S}/update-identity.service $units/update-identity.service
        install -D -m 0644 ${S}/sshdgenkeys.conf $units/sshdgenkeys.service.d/10-update-identity.conf
        install -D -m 0644 ${S}/dropbearkey.conf $units/dropbearkey.service.d/10-update-identity.conf
    else
        install -D -m 0755 ${S}/update-identity.init ${D}${sysconfdir}/init.d/update-identity
    fi
}

FILES:${PN} = "/data/identity ${sbindir} ${sysconfdir}/init.d ${systemd_system_unitdir}"
