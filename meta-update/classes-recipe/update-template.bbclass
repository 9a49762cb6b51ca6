# SPDX-License-Identifier: MIT
#
# For recipes that write a machine's facts into a file: fills @@NAME@@ from the variable NAME.
#
#     inherit update-template
#     SRC_URI = "file://fw_env.config.in"
#     UPDATE_TEMPLATES = "fw_env.config.in:fw_env.config"
#
# do_compile writes ${B}/fw_env.config, and stops at a name that is not set. The recipe is skipped in a build
# that did not INHERIT += "update".

INHIBIT_DEFAULT_DEPS = "1"
S = "${UNPACKDIR}"
B = "${WORKDIR}/build"
PACKAGE_ARCH = "${MACHINE_ARCH}"

python () {
    if d.getVar("UPDATE_ENABLED") != "1":
        raise bb.parse.SkipRecipe('needs INHERIT += "update"')
    # Another value of what a template names is another file; of anything else, not.
    names = {"UPDATE_TEMPLATES"}
    for pair in d.getVar("UPDATE_TEMPLATES").split():
        if path := bb.utils.which(d.getVar("FILESPATH"), pair.partition(":")[0]):
            bb.parse.mark_dependency(d, path)
            with open(path, encoding="utf-8") as file:
                names |= update_layer.template.names(file.read())
    d.appendVarFlag("do_compile", "vardeps", " " + " ".join(sorted(names)))
}

do_configure[noexec] = "1"

do_compile[cleandirs] = "${B}"
python do_compile() {
    for pair in d.getVar("UPDATE_TEMPLATES").split():
        source, _, target = pair.partition(":")
        with open(os.path.join(d.getVar("S"), source), encoding="utf-8") as file:
            text = file.read()
        try:
            text = update_layer.template.fill(text, d.getVar, source)
        except ValueError as error:
            bb.fatal(str(error))
        with open(os.path.join(d.getVar("B"), target), "w", encoding="utf-8") as file:
            file.write(text)
}
