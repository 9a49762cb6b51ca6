# SPDX-License-Identifier: MIT
SUMMARY = "Wi-Fi by a file on the data partition"
DESCRIPTION = "Starts wpa_supplicant on every wireless interface with /data/network/wpa_supplicant.conf, if that is \
there, and DHCP by systemd-networkd. No network and no password is in the root file system: `scripts/ota flash \
--wifi` puts the file on a device's card, and it survives updates."
SECTION = "net"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = " \
    file://80-update-wifi.network \
    file://90-update-wifi.rules \
    file://update-wifi@.service \
"

python () {
    if not bb.utils.contains("DISTRO_FEATURES", "systemd", True, False, d):
        raise bb.parse.SkipRecipe("update-wifi is for systemd: udev starts it, systemd-networkd gets the address")
}

S = "${UNPACKDIR}"

# Plain files: nothing for a compiler.
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${S}/update-wifi@.service ${D}${systemd_system_unitdir}/update-wifi@.service
    install -D -m 0644 ${S}/80-update-wifi.network ${D}${systemd_unitdir}/network/80-update-wifi.network
    install -D -m 0644 ${S}/90-update-wifi.rules ${D}${nonarch_base_libdir}/udev/rules.d/90-update-wifi.rules
}

FILES:${PN} = "${systemd_unitdir} ${nonarch_base_libdir}/udev"
RDEPENDS:${PN} = "wpa-supplicant"
