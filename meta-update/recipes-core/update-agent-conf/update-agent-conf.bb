# SPDX-License-Identifier: MIT
SUMMARY = "Configuration of the update agent for this machine"
DESCRIPTION = "mender.conf, device type, certificate and keys, made from the machine's and the product's \
variables; the agent's store on the data partition."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit update-template

UPDATE_TEMPLATES = ""

# What is read from the build host counts in the signature.
do_install[file-checksums] += "${@' '.join(path + ':True' for path in d.expand('${UPDATE_SERVER_CERTIFICATE} ${UPDATE_VERIFY_KEYS}').split())}"
do_install[vardeps] += "${@' '.join(sorted(update_layer.layout.documented()))}"
do_install[cleandirs] = "${D}"
python do_install() {
    import json
    root = d.getVar("D")
    conf = os.path.join(root, d.getVar("sysconfdir").lstrip("/"), "mender")
    data = os.path.join(root, "data/mender")
    for folder in (conf, os.path.join(conf, "scripts"), data, root + d.getVar("localstatedir") + "/lib"):
        bb.utils.mkdirhier(folder)

    def write(path, text):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)

    def copy(source, path):
        if not os.path.isfile(source):
            bb.fatal("no file %s: UPDATE_SERVER_CERTIFICATE and UPDATE_VERIFY_KEYS are paths" % source)
        bb.utils.copyfile(source, path)
        os.chmod(path, 0o644)

    # It may hold the tenant's token.
    write(os.path.join(conf, "mender.conf"), json.dumps(update_layer.agentconf.settings(d.getVar), indent=4) + "\n")
    os.chmod(os.path.join(conf, "mender.conf"), 0o600)
    # Version of the state scripts' interface.
    write(os.path.join(conf, "scripts/version"), "3\n")
    if d.getVar("UPDATE_SERVER_CERTIFICATE"):
        copy(d.getVar("UPDATE_SERVER_CERTIFICATE"), os.path.join(conf, "server.crt"))
    for number, key in enumerate((d.getVar("UPDATE_VERIFY_KEYS") or "").split()):
        copy(key, os.path.join(conf, "artifact-verify-key-%d.pem" % number))
    # The store survives updates: it is on the data partition, whose first content wic takes from /data.
    write(os.path.join(data, "device_type"), "device_type=%s\n" % d.getVar("UPDATE_DEVICE_TYPE"))
    os.chmod(data, 0o700)
    os.symlink("/data/mender", root + d.getVar("localstatedir") + "/lib/mender")
}

FILES:${PN} = "${sysconfdir}/mender ${localstatedir}/lib/mender /data/mender"
CONFFILES:${PN} = "${sysconfdir}/mender/mender.conf"
RDEPENDS:${PN}:update-u-boot = "update-fw-env-config"
