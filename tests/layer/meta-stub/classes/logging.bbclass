# SPDX-License-Identifier: Apache-2.0
bbnote() {
    echo "NOTE: $*"
}
bbwarn() {
    echo "WARNING: $*" >&2
}
bbfatal() {
    echo "ERROR: $*" >&2
    exit 1
}
