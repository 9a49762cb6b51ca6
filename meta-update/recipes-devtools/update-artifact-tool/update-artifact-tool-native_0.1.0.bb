# SPDX-License-Identifier: MIT
SUMMARY = "Writes and signs update artifacts in a build"
DESCRIPTION = "This repository's artifact writer, `ota artifact` at the desk: Python's standard library, libdeflate, \
and the programs openssl and zstd."
SECTION = "devel"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# Beside this layer, in the same repository. Only what the writer is made of: a change of another desk tool is none
# of an artifact.
FILESEXTRAPATHS:prepend := "${UPDATE_SOURCEDIR}:"
SRC_URI = " \
    file://LICENSE \
    file://agent/update_agent \
    file://scripts/update_tools/__init__.py \
    file://scripts/update_tools/__main__.py \
    file://scripts/update_tools/artifact.py \
    file://scripts/update_tools/artifact_cli.py \
    file://scripts/update_tools/artifact_files.py \
    file://scripts/update_tools/openssl_keys.py \
    file://scripts/update_tools/packing.py \
"

S = "${UNPACKDIR}"

inherit python3native
inherit_defer native

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    share=${D}${datadir}/update-artifact-tool
    install -d $share/update_agent $share/update_tools ${D}${bindir}
    install -m 0644 ${S}/agent/update_agent/*.py $share/update_agent
    install -m 0644 ${S}/scripts/update_tools/*.py $share/update_tools

    # Found from where it is: a native sysroot is copied from recipe to recipe.
    printf '%s\n' '#!/usr/bin/env nativepython3' 'import os' 'import sys' 'sys.dont_write_bytecode = True' \
        'here = os.path.dirname(os.path.realpath(__file__))' \
        'sys.path.insert(0, os.path.join(here, "../share/update-artifact-tool"))' \
        'from update_tools.__main__ import main' \
        'sys.exit(main(["artifact", *sys.argv[1:]]))' > ${D}${bindir}/update-artifact-tool
    chmod 0755 ${D}${bindir}/update-artifact-tool
}

RDEPENDS:${PN} = "openssl-native python3-deflate-native python3-native zstd-native"
