# SPDX-License-Identifier: Apache-2.0
# For programs that run in the build: they are installed under the native sysroot, and put there at once.
prefix = "${STAGING_DIR_NATIVE}/usr"
CC = "cc"
CPPFLAGS = ""
CFLAGS = "-O2"
LDFLAGS = ""
STAGING_INCDIR = "${STUB_INCDIR}"

stub_populate_sysroot() {
    mkdir -p ${STAGING_DIR_NATIVE}
    cp -R ${D}${STAGING_DIR_NATIVE}/. ${STAGING_DIR_NATIVE}
}
do_install[postfuncs] += "stub_populate_sysroot"
