# SPDX-License-Identifier: Apache-2.0
"""Systems and artifacts made from one root file system that works: good ones, and broken ones.

Only an ext4 image and debugfs are needed, so a product's image is broken just as a virtual board's is.
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

from update_tools.bench.tools import run
from update_tools.demo.artifacts import make_artifact

# Everything but "good" must end where it began.
INITS = {
    "panic": "#!/bin/sh\necho 'init: this version is broken'\nexit 1\n",
    "hang": "#!/bin/sh\necho 'init: this version hangs'\nwhile :; do sleep 3600; done\n",
}
NO_NETWORK = """\
#!/bin/sh
# The new system has no network: the self-test that comes after this cannot reach the server.
set -eu
for interface in /sys/class/net/*; do
    ip link set "${interface##*/}" down
done
echo "every interface is down" >&2
"""
REFUSING = """\
#!/bin/sh
set -eu
echo "health check: the application does not answer on its port" >&2
exit 1
"""
SCRIPTS = {
    "refusing": ("ArtifactCommit_Enter_10_health-check", REFUSING),
    "no-network": ("ArtifactReboot_Leave_05_no-network", NO_NETWORK),
}
OWN_BYTES = 4 << 20


class Systems:
    """Makes images and artifacts for one board, each once."""

    def __init__(self, place: Path, good: Path, *, kernel: str, device_type: str) -> None:
        self.place = place
        self.good = good
        self.kernel = kernel
        self.device_type = device_type

    def image(self, name: str, variant: str = "good") -> Path:
        """A root file system of its own; its bytes differ from all others' by some megabytes."""
        made = self.place / f"{name}.ext4"
        if made.exists():
            return made
        fresh = made.with_suffix(".new")
        shutil.copyfile(self.good, fresh)
        own = self.place / "own"
        own.write_bytes(random.Random(name).randbytes(OWN_BYTES))
        orders = ["cd /", f"write {own} of-this-version"]
        if variant in INITS:
            init = self.place / "init"
            init.write_text(INITS[variant])
            orders += ["cd /sbin/.", "rm init", f"write {init} init", "set_inode_field init mode 0100755"]
        elif variant == "no-kernel":
            orders += [f"rm /boot/{self.kernel}"]
        orders_file = self.place / "orders"
        orders_file.write_text("\n".join(orders) + "\n")
        run(["debugfs", "-w", "-f", orders_file, fresh])
        # debugfs exits with 0 whatever it did.
        assert _size(fresh, "/of-this-version") == OWN_BYTES, (
            f"{fresh.name} has no room for {OWN_BYTES} more bytes"
        )
        if variant in INITS:
            assert _size(fresh, "/sbin/init") == len(INITS[variant])
        elif variant == "no-kernel":
            assert _size(fresh, f"/boot/{self.kernel}") is None
        return fresh.rename(made)

    def artifact(self, name: str, variant: str = "good") -> Path:
        """Its artifact, with the demo's state scripts, and one more for a variant that is a script."""
        made = self.place / f"{name}.mender"
        if made.exists():
            return made
        folders = []
        if variant in SCRIPTS:
            script, text = SCRIPTS[variant]
            folder = self.place / f"scripts-{variant}"
            folder.mkdir(exist_ok=True)
            (folder / script).write_text(text)
            (folder / script).chmod(0o755)
            folders.append(str(folder))
        return make_artifact(self.image(name, variant), name, self.device_type, *folders)


def _size(image: Path, path: str) -> int | None:
    """Size of a file in an image; None: there is none."""
    found = re.search(r"\bSize: (\d+)", run(["debugfs", "-R", f"stat {path}", image]))
    return int(found[1]) if found else None
