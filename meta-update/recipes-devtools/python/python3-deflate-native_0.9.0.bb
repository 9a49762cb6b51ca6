# SPDX-License-Identifier: MIT
SUMMARY = "libdeflate for Python, which compresses update artifacts"
DESCRIPTION = "Carries libdeflate 1.26 in its source. The version decides the bytes of an artifact: it is the one \
that this repository's desk tools have, so that both write the same."
HOMEPAGE = "https://github.com/dcwatson/deflate"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=04b82a429675de71589179790d05cbe1 \
                    file://libdeflate/COPYING;md5=89f8c510215440fe2f208fba4afe07e0"

SRC_URI[sha256sum] = "962e0a6f1ea3a94b900a8ea0ce138fa92bfcbafda5b86367104a259ffcd3462b"

inherit pypi python3native
inherit_defer native

PYPI_PACKAGE = "deflate"
B = "${WORKDIR}/build"

do_configure[noexec] = "1"

# One library of a dozen C files: its own build wants scikit-build and cmake for that.
do_compile() {
    ${CC} ${CPPFLAGS} ${CFLAGS} ${LDFLAGS} -fPIC -shared -I${STAGING_INCDIR}/${PYTHON_DIR} -I${S}/libdeflate \
        -o ${B}/_deflate.so ${S}/src/_deflate.c ${S}/libdeflate/lib/*.c ${S}/libdeflate/lib/*/*.c
}

do_install() {
    install -D -m 0644 ${S}/src/deflate/__init__.py ${D}${PYTHON_SITEPACKAGES_DIR}/deflate/__init__.py
    install -m 0755 ${B}/_deflate.so ${D}${PYTHON_SITEPACKAGES_DIR}/deflate/_deflate.so
}
