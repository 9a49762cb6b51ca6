# SPDX-License-Identifier: MIT
SUMMARY = "D-Bus protocol in pure Python"
DESCRIPTION = "Messages of D-Bus apart from their transport, and a blocking connection. Neither OE-core nor \
meta-python has it."
SECTION = "devel/python"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=aad69c93f605003e3342b174d9b0708c"

SRC_URI[sha256sum] = "cf0e9e845622b81e4a28df94c40345400256ec608d0e55bb8a3feaa9163f5732"

inherit pypi python3native

# Plain Python: nothing for a compiler.
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# Copied, not built: it is plain Python, and its pyproject.toml needs a newer flit-core than scarthgap has.
# Left out: tests, and connections for asyncio and trio, which no image of ours uses.
do_install() {
    package=${D}${PYTHON_SITEPACKAGES_DIR}/jeepney
    install -d $package/io
    install -m 0644 ${S}/jeepney/*.py $package
    install -m 0644 ${S}/jeepney/io/__init__.py ${S}/jeepney/io/blocking.py ${S}/jeepney/io/common.py \
        ${S}/jeepney/io/threading.py $package/io
    ${PYTHON} -m compileall -q --invalidation-mode unchecked-hash -s ${D} -p / $package
}

FILES:${PN} = "${PYTHON_SITEPACKAGES_DIR}/jeepney"
RDEPENDS:${PN} = "python3-core python3-io python3-stringold"
