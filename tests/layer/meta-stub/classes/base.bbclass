# SPDX-License-Identifier: Apache-2.0
inherit logging

python do_unpack() {
    urls = (d.getVar("SRC_URI") or "").split()
    if urls:
        bb.fetch2.Fetch(urls, d).unpack(d.getVar("UNPACKDIR"))
}
do_unpack[cleandirs] = "${UNPACKDIR}"

do_configure() {
    :
}
do_configure[dirs] = "${B}"
do_compile() {
    :
}
do_compile[dirs] = "${B}"
do_install() {
    :
}
do_install[dirs] = "${B}"
do_install[cleandirs] = "${D}"
do_build() {
    :
}
addtask unpack
addtask configure after do_unpack
addtask compile after do_configure
addtask install after do_compile
addtask build after do_install

oe_runmake() {
    echo "make $*" >> ${WORKDIR}/make.log
}
