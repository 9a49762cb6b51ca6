# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Packages of other layers that ours and our images depend on"
LICENSE = "Apache-2.0"

PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
EXCLUDE_FROM_SHLIBS = "1"
SKIP_FILEDEPS = "1"

PACKAGES = "packagegroup-core-boot ${STANDIN_PACKAGES}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_package_qa[noexec] = "1"
do_populate_sysroot[noexec] = "1"

# STANDIN_DIR/tree: for the virtual board Debian's programs, for all what base-files would bring.
do_install() {
    cp -R --no-dereference --preserve=mode,links "${STANDIN_DIR}/tree/." "${D}"
}
do_install[file-checksums] += "${STANDIN_DIR}/tree:True"

FILES:packagegroup-core-boot = "/"
RPROVIDES:python3-core = "/usr/bin/python3"
RPROVIDES:packagegroup-core-boot = "/bin/sh"

python () {
    for name in d.getVar("PACKAGES").split():
        d.setVar("ALLOW_EMPTY:" + name, "1")
}
