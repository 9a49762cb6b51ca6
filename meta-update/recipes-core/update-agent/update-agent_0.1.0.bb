# SPDX-License-Identifier: MIT
SUMMARY = "Over-the-air update agent for devices with two root partitions"
DESCRIPTION = "Downloads an update as a stream, writes the inactive partition, runs state scripts at every \
step, pauses where it is told to, reboots, and commits or rolls back. Speaks the Mender device API."
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The agent stands beside this layer, in the same repository: what was tested together is built together.
FILESEXTRAPATHS:prepend := "${UPDATE_SOURCEDIR}:"
SRC_URI = " \
    file://LICENSE \
    file://agent \
    file://install-agent.py \
    file://mender-device-identity \
    file://mender-inventory-update \
    file://mender-updated.service \
    file://single-file \
    file://update-agent.init \
"

S = "${UNPACKDIR}/agent"

inherit python3native systemd update-rc.d

SYSTEMD_PACKAGES = "${PN}"
SYSTEMD_SERVICE:${PN} = "mender-updated.service"
INITSCRIPT_NAME = "update-agent"
INITSCRIPT_PARAMS = "defaults 95 05"

# Plain Python: nothing for a compiler.
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# The agent is one archive of byte code, read by Python's own zipimport: files/install-agent.py says why. A traceback
# names file and line all the same; with ${PN}-source it quotes the text.
do_install() {
    PYTHONHASHSEED=0 ${PYTHON} -X no_debug_ranges ${UNPACKDIR}/install-agent.py ${S}/update_agent \
        --root ${D} --packages ${PYTHON_SITEPACKAGES_DIR} --bin ${bindir}
    ln -s update-agent ${D}${bindir}/mender-update
    install -d ${D}${PYTHON_SITEPACKAGES_DIR}/update_agent
    install -m 0644 ${S}/update_agent/*.py ${D}${PYTHON_SITEPACKAGES_DIR}/update_agent

    install -d ${D}${datadir}/dbus-1/system.d ${D}${datadir}/dbus-1/interfaces
    install -m 0644 ${S}/dbus/*.conf ${D}${datadir}/dbus-1/system.d
    install -m 0644 ${S}/dbus/*.xml ${D}${datadir}/dbus-1/interfaces

    install -D -m 0644 ${S}/man/update-agent.8 ${D}${mandir}/man8/update-agent.8
    ln -s update-agent.8 ${D}${mandir}/man8/mender-update.8
    completions=${D}${datadir}/bash-completion/completions
    install -D -m 0644 ${S}/completion/update-agent $completions/update-agent
    ln -s update-agent $completions/mender-update

    share=${D}${datadir}/mender
    install -D -m 0755 ${UNPACKDIR}/mender-device-identity $share/identity/mender-device-identity
    install -D -m 0755 ${UNPACKDIR}/mender-inventory-update $share/inventory/mender-inventory-update
    install -D -m 0755 ${UNPACKDIR}/single-file $share/modules/v3/single-file

    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -D -m 0644 ${UNPACKDIR}/mender-updated.service ${D}${systemd_system_unitdir}/mender-updated.service
    else
        install -D -m 0755 ${UNPACKDIR}/update-agent.init ${D}${sysconfdir}/init.d/update-agent
    fi
}

# The images' own features doc-pkgs and bash-completion-pkgs add what is named so.
PACKAGES = "${PN}-source ${PN}-dbus ${PN}-modules ${PN}-doc ${PN}-bash-completion ${PN}"
SUMMARY:${PN}-source = "${SUMMARY}: source text"
SUMMARY:${PN}-dbus = "${SUMMARY}: D-Bus policy, and what the D-Bus interface needs"
SUMMARY:${PN}-modules = "${SUMMARY}: update modules for more than root partitions"
SUMMARY:${PN}-doc = "${SUMMARY}: manual page"
SUMMARY:${PN}-bash-completion = "${SUMMARY}: completion for bash"

# Named one by one: `scripts/ota inspect footprint` finds them by these lines among an image's other files.
FILES:${PN}-source = "${PYTHON_SITEPACKAGES_DIR}/update_agent"
FILES:${PN}-dbus = "${datadir}/dbus-1/*/io.mender.* ${datadir}/dbus-1/*/org.metaupdate.*"
FILES:${PN}-modules = "${datadir}/mender/modules/v3/single-file"
FILES:${PN}-doc = "${mandir}/man8/update-agent.8* ${mandir}/man8/mender-update.8*"
FILES:${PN}-bash-completion = " \
    ${datadir}/bash-completion/completions/update-agent \
    ${datadir}/bash-completion/completions/mender-update \
"
FILES:${PN} = " \
    ${PYTHON_SITEPACKAGES_DIR}/update-agent.zip \
    ${bindir}/update-agent \
    ${bindir}/mender-update \
    ${datadir}/mender/identity/mender-device-identity \
    ${datadir}/mender/inventory/mender-inventory-update \
    ${sysconfdir}/init.d/update-agent \
    ${systemd_system_unitdir}/mender-updated.service \
"

# Exactly what the modules import: tests/layer/test_imports.py.
RDEPENDS:${PN} = " \
    libubootenv-bin \
    openssl-bin \
    python3-core \
    python3-crypt \
    python3-ctypes \
    python3-email \
    python3-fcntl \
    python3-io \
    python3-json \
    python3-mmap \
"
# What the device is comes with the class `update`; a world build without it has no configuration to depend on.
RDEPENDS:${PN}:append:update = " update-agent-conf"
# Artifacts compressed with zstd; without the library they are refused with a message.
RRECOMMENDS:${PN} = "libzstd"
RDEPENDS:${PN}-dbus = "${PN} python3-jeepney"
RDEPENDS:${PN}-modules = "${PN}"
RDEPENDS:${PN}-bash-completion = "bash-completion"
RDEPENDS:${PN}-source = "${PN}"

# Both have /usr/bin/mender-update and would drive the same boot variables.
RCONFLICTS:${PN} = "mender-update mender-client"
