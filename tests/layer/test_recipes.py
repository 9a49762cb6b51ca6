# SPDX-License-Identifier: Apache-2.0
"""What our recipes install: files, modes, packages; and that the programs among them run."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jeepney
import pytest
from tests.layer.bitbake import ROOT, SERIES, TASKS, Build

PYTHON = {"scarthgap": "3.12", "wrynose": "3.14"}
INHERIT = 'INHERIT += "update"\n'


def tree(root: Path) -> dict[str, str]:
    """Every file under root: its mode, or where it points to."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found["/" + str(path.relative_to(root))] = "-> " + os.readlink(path)
        elif path.is_file():
            found["/" + str(path.relative_to(root))] = f"{stat.S_IMODE(path.stat().st_mode):04o}"
    return found


def packages(build: Build, recipe: str) -> dict[str, list[str]]:
    """Files by package, split as BitBake does: the first package in PACKAGES that names a file has it."""
    names = build.ask({recipe: {"values": ["PACKAGES"]}})["recipes"][recipe]["values"]["PACKAGES"].split()
    wanted = {"tasks": TASKS, "values": ["D", *(f"FILES:{name}" for name in names)]}
    values = build.ask({recipe: wanted})["recipes"][recipe]["values"]
    found: dict[str, list[str]] = {name: [] for name in [*names, "nowhere"]}
    for file in tree(Path(values["D"])):
        for name in [*names, "nowhere"]:
            patterns = (values.get(f"FILES:{name}") or "").split()
            if name == "nowhere" or any(fnmatch(file, p) or file.startswith(p + "/") for p in patterns):
                found[name].append(file)
                break
    return found


@pytest.mark.parametrize("series", SERIES)
def test_agent_files(tmp_path: Path, series: str) -> None:
    root = Path(Build(tmp_path / "build", series=series).run("update-agent")["D"])
    files = tree(root)
    packages = f"/usr/lib/python{PYTHON[series]}/site-packages/"
    bus = {name: mode for name, mode in files.items() if name.startswith("/usr/share/dbus-1/")}
    assert {Path(name).name for name in bus} == {path.name for path in (ROOT / "agent/dbus").iterdir()}
    assert set(bus.values()) == {"0644"}
    assert {
        name: mode for name, mode in files.items() if not name.startswith(packages) and name not in bus
    } == {
        "/usr/bin/mender-update": "-> update-agent",
        "/usr/bin/update-agent": "0755",
        "/usr/lib/systemd/system/mender-updated.service": "0644",
        "/usr/share/bash-completion/completions/mender-update": "-> update-agent",
        "/usr/share/bash-completion/completions/update-agent": "0644",
        "/usr/share/man/man8/mender-update.8": "-> update-agent.8",
        "/usr/share/man/man8/update-agent.8": "0644",
        "/usr/share/mender/identity/mender-device-identity": "0755",
        "/usr/share/mender/inventory/mender-inventory-update": "0755",
        "/usr/share/mender/modules/v3/single-file": "0755",
    }
    assert {name for name in files if name.startswith(packages)} == {
        f"{packages}update-agent.zip",
        *(f"{packages}update_agent/{path.name}" for path in (ROOT / "agent/update_agent").glob("*.py")),
    }
    assert {mode for name, mode in files.items() if name.startswith(packages)} == {"0644"}
    with zipfile.ZipFile(root / packages[1:] / "update-agent.zip") as archive:
        modules = {name: archive.read(name) for name in archive.namelist()}
    assert sorted(modules) == sorted(
        f"update_agent/{path.name}c" for path in (ROOT / "agent/update_agent").glob("*.py")
    )
    # No path of the build host in what goes to the device.
    assert [name for name, code in modules.items() if str(tmp_path).encode() in code] == []


def test_agent_is_the_same_bytes_in_every_build(tmp_path: Path) -> None:
    made = set()
    for name in ("one", "another"):
        root = Path(Build(tmp_path / name).run("update-agent")["D"])
        (archive,) = root.glob("usr/lib/python*/site-packages/update-agent.zip")
        made.add(archive.read_bytes())
    assert len(made) == 1


def launcher(root: Path) -> tuple[str, Path]:
    """What /usr/bin/update-agent does, with the archive where the recipe put it here, and that archive."""
    (archive,) = root.glob("usr/lib/python*/site-packages/update-agent.zip")
    first, _, rest = (root / "usr/bin/update-agent").read_text().partition("\n")
    assert first == "#!/usr/bin/python3 -IS"
    on_device = f'"/{archive.parent.relative_to(root)}'
    assert rest.count(on_device) == 2
    return rest.replace(on_device, f'"{archive.parent}'), archive


def run_isolated(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-IS", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_agent_runs_from_its_archive_alone(tmp_path: Path) -> None:
    root = Path(Build(tmp_path / "build").run("update-agent")["D"])
    program, archive = launcher(root)
    shutil.rmtree(archive.parent / "update_agent")  # package update-agent-source
    done = run_isolated(f"import sys; sys.argv = ['mender-update', '--version']\n{program}")
    assert (done.stdout, done.returncode) == ("0.1.0\n", 0), done.stderr
    # The checker of pause hooks, as one would call it on a device.
    env = {"PYTHONPATH": str(archive)}
    command = [sys.executable, "-S", "-m", "update_agent.hooks", str(tmp_path)]
    assert subprocess.run(command, env=env, check=False).returncode == 0


def test_modules_are_told_the_names_that_zipimport_would_tell_them(tmp_path: Path) -> None:
    program, _ = launcher(Path(Build(tmp_path / "build").run("update-agent")["D"]))
    start, _, _ = program.partition("from update_agent")
    done = run_isolated(
        f"{start}\n"
        "import update_agent.machine\n"
        "for module in (update_agent, update_agent.machine):\n"
        "    assert type(module.__loader__) is Archive\n"
        "    theirs = zipimport.zipimporter.get_filename(module.__loader__, module.__name__)\n"
        "    assert module.__file__ == module.__spec__.origin == theirs, (module.__file__, theirs)\n"
        "print('same')\n"
    )
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr


def test_a_running_agent_keeps_its_modules_when_the_package_is_upgraded(tmp_path: Path) -> None:
    """Most modules are imported late, by the helper process: they must be those of the same version."""
    program, archive = launcher(Path(Build(tmp_path / "build").run("update-agent")["D"]))
    start, _, _ = program.partition("sys.exit(")
    shutil.rmtree(archive.parent / "update_agent")
    (tmp_path / "next").write_bytes(b"the next version")
    done = run_isolated(
        f"{start}os.replace({str(tmp_path / 'next')!r}, archive)\n"
        "if os.fork() == 0:\n"
        "    from update_agent.worker import Worker\n"
        "    print(Worker.__module__, flush=True)\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert (done.stdout, done.returncode) == ("update_agent.worker\n", 0), done.stderr
    assert archive.read_bytes() == b"the next version"


def test_a_traceback_names_file_and_line(tmp_path: Path) -> None:
    program, _ = launcher(Path(Build(tmp_path / "build").run("update-agent")["D"]))
    start, _, _ = program.partition("sys.exit(")
    done = run_isolated(f"{start}from update_agent import backoff\nlist(backoff.delays(None, None))\n")
    file = f"/usr/lib/python{PYTHON['wrynose']}/site-packages/update_agent/backoff.py"
    assert re.search(rf'File "{file}", line \d+, in delays\n', done.stderr), done.stderr


def test_agent_packages(tmp_path: Path) -> None:
    found = packages(Build(tmp_path / "build"), "update-agent")
    assert found["nowhere"] == []
    assert {Path(name).suffix for name in found["update-agent-source"]} == {".py"}
    assert found["update-agent-modules"] == ["/usr/share/mender/modules/v3/single-file"]
    for package in ("update-agent-doc", "update-agent-bash-completion"):
        names = {Path(name).name.removesuffix(".8") for name in found[package]}
        assert names == {"mender-update", "update-agent"}
    dbus = [Path(name).name for name in found["update-agent-dbus"]]
    assert {"io.mender.Update1.xml", "io.mender.UpdateManager.conf"} <= set(dbus)
    assert "/usr/bin/mender-update" in found["update-agent"]
    assert not [name for name in found["update-agent"] if name.endswith(".py") or "dbus" in name]
    assert [name for name in found["update-agent"] if name.endswith("/update-agent.zip")]


def test_agent_for_sysvinit(tmp_path: Path) -> None:
    conf = INHERIT + 'DISTRO_FEATURES = "sysvinit"\n'
    files = tree(Path(Build(tmp_path / "build", conf=conf).run("update-agent")["D"]))
    assert files["/etc/init.d/update-agent"] == "0755"
    assert not [name for name in files if "systemd" in name]


def test_the_unit_is_the_one_the_agent_looks_for(tmp_path: Path) -> None:
    values = Build(tmp_path / "build").run("update-agent", values=("SYSTEMD_SERVICE:update-agent",))
    assert values["SYSTEMD_SERVICE:update-agent"] == "mender-updated.service"
    unit = (Path(values["D"]) / "usr/lib/systemd/system/mender-updated.service").read_text()
    assert "ExecStart=/usr/bin/mender-update daemon\n" in unit
    # An update that breaks the network or /data is one that must be rolled back.
    assert not [line for line in unit.splitlines() if line.startswith(("Requires", "BindsTo"))]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("recipe", ["update-agent", "update-data"])
def test_units_are_valid(tmp_path: Path, recipe: str) -> None:
    root = Path(Build(tmp_path / "build").run(recipe)["D"])
    (unit,) = root.glob("usr/lib/systemd/system/*.service")
    program = unit.read_text().split("ExecStart=")[1].split()[0]
    copy = tmp_path / unit.name  # with a program that exists here
    copy.write_text(unit.read_text().replace(program, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


def test_configuration(tmp_path: Path) -> None:
    for name in ("server.crt", "a.pem", "b.pem"):
        (tmp_path / name).write_text(name)
    conf = (
        f'{INHERIT}UPDATE_SERVER_URL = "https://updates.example.com"\nUPDATE_TENANT_TOKEN = "secret"\n'
        f'UPDATE_SERVER_CERTIFICATE = "{tmp_path}/server.crt"\n'
        f'UPDATE_VERIFY_KEYS = "{tmp_path}/a.pem {tmp_path}/b.pem"\nUPDATE_POLL_INTERVAL_S = "60"\n'
    )
    build = Build(tmp_path / "build", machine="raspberrypi4-64", conf=conf)
    root = Path(build.run("update-agent-conf")["D"])
    assert tree(root) == {
        "/data/mender/device_type": "0644",
        "/etc/mender/artifact-verify-key-0.pem": "0644",
        "/etc/mender/artifact-verify-key-1.pem": "0644",
        "/etc/mender/mender.conf": "0600",
        "/etc/mender/scripts/version": "0644",
        "/etc/mender/server.crt": "0644",
        "/var/lib/mender": "-> /data/mender",
    }
    assert (root / "etc/mender/artifact-verify-key-1.pem").read_text() == "b.pem"
    assert (root / "data/mender/device_type").read_text() == "device_type=raspberrypi4-64\n"
    assert stat.S_IMODE((root / "data/mender").stat().st_mode) == 0o700
    assert packages(build, "update-agent-conf")["nowhere"] == []


def test_the_agent_understands_its_configuration(tmp_path: Path) -> None:
    from update_agent import config

    conf = INHERIT + 'UPDATE_SERVER_URL = "https://updates.example.com"\nUPDATE_POLL_INTERVAL_S = "60"\n'
    root = Path(Build(tmp_path / "build", conf=conf).run("update-agent-conf")["D"])
    path = root / "etc/mender/mender.conf"
    settings = config.load(path=str(path), datastore=str(tmp_path))
    assert settings.warnings == []
    assert settings.servers == ["https://updates.example.com"]
    assert (settings.rootfs_part_a, settings.rootfs_part_b) == ("/dev/mmcblk0p2", "/dev/mmcblk0p3")
    assert settings.update_poll_interval_s == 60
    assert {name.lower() for name in json.loads(path.read_text())} <= set(config._BY_NAME)


def test_a_key_that_is_not_there_stops_the_build(tmp_path: Path) -> None:
    build = Build(tmp_path / "build", conf=f'{INHERIT}UPDATE_VERIFY_KEYS = "{tmp_path}/gone.pem"\n')
    failed = build.ask({"update-agent-conf": {"tasks": TASKS}})["recipes"]["update-agent-conf"]["failed"]
    assert f"no file {tmp_path}/gone.pem" in failed


def test_jeepney(tmp_path: Path) -> None:
    """Its source comes from the network, so what is installed here stands for it."""
    build = Build(tmp_path / "build")
    source = Path(build.run("python3-jeepney", "do_configure", values=("S",))["S"])
    shutil.copytree(Path(jeepney.__file__).parent, source / "jeepney", dirs_exist_ok=True)
    root = Path(build.run("python3-jeepney", "do_install")["D"])
    (folder,) = root.glob("usr/lib/python*/site-packages")
    assert not [name for name in tree(folder) if "tests" in name or "asyncio" in name or "trio" in name]
    program = "import jeepney, jeepney.io.blocking; print(jeepney.new_method_call.__name__)"
    env = {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "new_method_call\n", done.stderr


@pytest.mark.skipif(not shutil.which("mkenvimage"), reason="mkenvimage is not installed")
def test_first_environment(tmp_path: Path) -> None:
    """U-Boot's own defaults with ours over them; fw_printenv reads both copies where fw_env.config says."""
    build = Build(tmp_path / "build")
    values = build.ask({"update-uboot-env": {"values": ["UPDATE_UBOOT_DEFAULT_ENV"]}})
    default = Path(values["recipes"]["update-uboot-env"]["values"]["UPDATE_UBOOT_DEFAULT_ENV"])
    default.parent.mkdir(parents=True, exist_ok=True)
    default.write_text("bootcmd=run distro_bootcmd\nbootcount=7\n")
    done = build.run("update-uboot-env", "do_unpack", "do_compile", "do_deploy")
    image = (Path(done["DEPLOYDIR"]) / "update-uboot-env.bin").read_bytes()
    assert len(image) == 0x4000
    names = dict(item.split(b"=", 1) for item in image[5:].rstrip(b"\0\xff").split(b"\0") if item)
    assert names[b"bootcmd"] == b"run distro_bootcmd"
    assert (names[b"bootcount"], names[b"mender_boot_part"], names[b"upgrade_available"]) == (
        b"0",
        b"2",
        b"0",
    )
    if not shutil.which("fw_printenv"):
        pytest.skip("fw_printenv is not installed")
    conf = Path(build.run("update-fw-env-config")["D"]) / "etc/fw_env.config"
    card = tmp_path / "card"
    with card.open("wb") as file:
        file.truncate(8 << 20)
        for offset in (0x400000, 0x600000):
            file.seek(offset)
            file.write(image)
    conf.write_text(conf.read_text().replace("/dev/mmcblk0", str(card)))
    command = ["fw_printenv", "-c", str(conf), "-n", "mender_boot_part"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"


def test_a_boot_loader_with_another_name_for_its_environment_is_told(tmp_path: Path) -> None:
    """With UBOOT_CONFIG, OE-core's U-Boot adds its type to the name."""
    build = Build(tmp_path / "build")
    deploy = tmp_path / "build/tmp/deploy/images/virt64"
    deploy.mkdir(parents=True)
    (deploy / "u-boot-initial-env-virt64-sd").write_text("bootcmd=boot\n")
    answer = build.ask({"update-uboot-env": {"tasks": ["do_unpack", "do_compile"]}})
    failed = answer["recipes"]["update-uboot-env"]["failed"]
    assert "UPDATE_UBOOT_DEFAULT_ENV: no " in failed
    assert "the boot loader deployed: u-boot-initial-env-virt64-sd" in failed


@pytest.mark.skipif(not shutil.which("mkimage"), reason="mkimage is not installed")
@pytest.mark.parametrize(("machine", "load"), [("raspberrypi5", "booti"), ("beaglebone-yocto", "bootz")])
def test_boot_script(tmp_path: Path, machine: str, load: str) -> None:
    done = Build(tmp_path / "build", machine=machine).run(
        "update-boot-script", "do_unpack", "do_compile", "do_deploy", values=("PROVIDES",)
    )
    script = (Path(done["DEPLOYDIR"]) / "boot.scr").read_bytes()
    assert script[:4] == b"\x27\x05\x19\x56"
    assert b"@@" not in script
    assert f"{load} ${{kernel_addr_r}}".encode() in script
    assert "u-boot-default-script" in done["PROVIDES"].split()


@pytest.mark.parametrize("machine", ["raspberrypi4-64", "beaglebone-yocto", "qemuarm64"])
def test_u_boot_is_configured(tmp_path: Path, machine: str) -> None:
    done = Build(tmp_path / "build", machine=machine).run("u-boot")
    config = (Path(done["B"]) / ".config").read_text()
    assert "CONFIG_ENV_OFFSET=0x400000\n" in config
    assert ("CONFIG_ENV_SIZE=0x20000\n" in config) == (machine == "beaglebone-yocto")
    assert ("# CONFIG_SPL_MUSB_NEW is not set\n" in config) == (machine == "beaglebone-yocto")
    assert ("CONFIG_MMC_PCI=y\n" in config) == (machine == "qemuarm64")
    assert not (Path(done["D"]) / "etc/fw_env.config").exists()
    assert "@@" not in config


def test_a_line_that_u_boot_does_not_take_stops_the_build(tmp_path: Path) -> None:
    conf = INHERIT + 'export STUB_REFUSES = "CONFIG_BOOTCOUNT_ENV"\n'
    failed = Build(tmp_path / "build", conf=conf).ask({"u-boot": {"tasks": TASKS}})["recipes"]["u-boot"]
    assert "U-Boot did not take these lines" in failed["failed"]
    assert "CONFIG_BOOTCOUNT_ENV=y (.config has nothing)" in failed["failed"]


@pytest.mark.parametrize(
    ("recipe", "task", "fills"),
    [
        ("u-boot", "do_configure", {"UPDATE_UBOOT_ENV_OFFSET", "UPDATE_UBOOT_MMC", "UPDATE_UBOOT_FRAGMENTS"}),
        ("update-boot-script", "do_compile", {"UPDATE_KERNEL", "UPDATE_BOOTARGS", "UPDATE_TEMPLATES"}),
        ("update-uboot-env", "do_compile", {"UPDATE_BOOTLIMIT", "UPDATE_PART_A"}),
    ],
)
def test_made_anew_for_what_is_filled_in_and_for_nothing_else(
    tmp_path: Path, recipe: str, task: str, fills: set[str]
) -> None:
    """Each version of a product would build U-Boot again."""
    answer = Build(tmp_path / "build").ask({recipe: {"flags": [f"{task}[vardeps"]}})
    named = set(answer["recipes"][recipe]["flags"][f"{task}[vardeps"].split())
    assert fills <= named
    assert not named & {"UPDATE_ARTIFACT_NAME", "UPDATE_SERVER_URL", "UPDATE_TENANT_TOKEN"}


def test_a_fragment_that_is_not_there_stops_the_build(tmp_path: Path) -> None:
    conf = INHERIT + 'UPDATE_UBOOT_FRAGMENTS = "update-env.cfg mine.cfg"\n'
    answer: dict[str, Any] = Build(tmp_path / "build", conf=conf).ask({"u-boot": {"tasks": TASKS}})
    assert "no file mine.cfg" in answer["recipes"]["u-boot"]["failed"]
