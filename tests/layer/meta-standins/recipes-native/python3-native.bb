# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Debian's Python where native Python is expected"
LICENSE = "Apache-2.0"

inherit python3-dir native

INHIBIT_DEFAULT_DEPS = "1"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

# Found from where it is: a native sysroot is copied from recipe to recipe. Its version is Debian's, not the series'.
do_install() {
    install -d ${D}${bindir}/python3-native ${D}${includedir}
    cat > ${D}${bindir}/python3-native/python3 <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
PYTHONPATH=$here/../../lib/${PYTHON_DIR}/site-packages${PYTHONPATH:+:$PYTHONPATH} exec /usr/bin/python3 "$@"
SCRIPT
    chmod 0755 ${D}${bindir}/python3-native/python3
    ln -s python3-native/python3 ${D}${bindir}/nativepython3
    cp -R --no-dereference "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        ${D}${includedir}/${PYTHON_DIR}
}
