# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Debian's programs that native recipes of ours need when they run"
LICENSE = "Apache-2.0"

inherit native

PROVIDES = "openssl-native zstd-native"
RPROVIDES:${PN} = "openssl-native zstd-native"
INHIBIT_DEFAULT_DEPS = "1"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"
