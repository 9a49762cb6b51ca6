# SPDX-License-Identifier: Apache-2.0
SUMMARY = "wic as OE-core had it until it became a repository of its own"
LICENSE = "GPL-2.0-only"

inherit native

INHIBIT_DEFAULT_DEPS = "1"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

# STANDIN_WIC: scripts of OE-core with wic in them.
do_install() {
    install -d ${D}${datadir}/wic ${D}${bindir}
    cp -R --no-dereference ${STANDIN_WIC}/scripts ${D}${datadir}/wic
    cat > ${D}${bindir}/wic <<SCRIPT
#!/bin/sh
PYTHONPATH=${COREBASE}/meta/lib:${BITBAKE_LIB} exec /usr/bin/python3 \$(dirname \$0)/../share/wic/scripts/wic "\$@"
SCRIPT
    chmod 0755 ${D}${bindir}/wic
}
do_install[file-checksums] += "${STANDIN_WIC}:True"
BITBAKE_LIB = "${@os.path.dirname(os.path.dirname(bb.__file__))}"
