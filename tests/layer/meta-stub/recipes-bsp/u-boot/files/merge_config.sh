#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What Kconfig makes of fragments, as far as a test needs: `-m -O DIR CONFIG FRAGMENT...`; of the two names of
# one symbol it knows the later one, and $STUB_REFUSES names a symbol it does not take.
set -eu
out=$3
config=$4
shift 4
cat "$config" "$@" | grep -v "CONFIG_SYS_REDUNDAND_ENVIRONMENT\|CONFIG_SYS_MMC_ENV\|${STUB_REFUSES:-nothing}" >"$out/.merged"
mv "$out/.merged" "$out/.config"
