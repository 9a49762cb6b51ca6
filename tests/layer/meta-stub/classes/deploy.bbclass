# SPDX-License-Identifier: Apache-2.0
do_deploy[dirs] = "${B}"
do_deploy[cleandirs] = "${DEPLOYDIR}"
