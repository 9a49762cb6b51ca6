# SPDX-License-Identifier: Apache-2.0
"""Every branch of `ota`: the same exit codes, errors that say what to do, one way to ask for JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from tests.unit.peer import openssl

from update_tools import __main__ as ota
from update_tools.server.settings import open_database

PROGRAM = "import sys; from update_tools.__main__ import main; sys.exit(main())"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what commands are given: right files and wrong ones."""
    folder = tmp_path_factory.mktemp("ota")
    (folder / "empty").touch()
    (folder / "text").write_text("just text\n")
    (folder / "folder").mkdir()
    (folder / "key.pem").write_bytes(
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    )
    (folder / "public.pem").write_bytes(openssl("pkey", "-in", folder / "key.pem", "-pubout"))
    (folder / "locked.pem").write_bytes(
        openssl("pkey", "-in", folder / "key.pem", "-aes256", "-passout", "pass:secret")
    )
    (folder / "garbled.pem").write_bytes((folder / "key.pem").read_bytes().replace(b"M", b"N"))
    certificate = ("req", "-x509", "-key", folder / "key.pem", "-subj", "/CN=x")
    (folder / "certificate.pem").write_bytes(openssl(*certificate))
    (folder / "ssh.pub").write_text("ssh-ed25519 AAAA someone\n")
    (folder / "ssh").write_text(
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    write = ["artifact", "write", "bootstrap-artifact", "-n", "release-1", "-t", "board"]
    assert ota.main([*write, "-o", str(folder / "a.mender")]) == 0
    (folder / "data").mkdir()
    open_database(folder / "data", "").close()
    (folder / "wrong-data").mkdir()
    (folder / "wrong-data/server.db").write_text("no database")
    return folder


BRANCHES = ("artifact", "bench-server", "board", "completion", "flash", "inspect", "rehearse", "server")


def test_the_tables_below_have_every_branch() -> None:
    assert set(ota.SUBCOMMANDS) == set(BRANCHES)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-h", 0), ("--no-such-option", 2)])
def test_help_and_wrong_usage(branch: str, word: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ota.main([branch, word]) == code
    out, err = capsys.readouterr()
    assert bool(out) == (code == 0)
    assert bool(err) == (code == 2)


# Words (P is the folder, EMPTY none), and what the error must say. All are wrong input: 2, no traceback, no
# raw text of a library.
WRONG: dict[str, str] = {
    "": "",
    "no-such": "No such command",
    "artifact": "usage: ota artifact",
    "artifact read P/none": "cannot read P/none: No such file or directory",
    "artifact read P/folder": "Is a directory",
    "artifact read P/empty": "cut off",
    "artifact read P/text": "the artifact is cut off at byte 10",
    "artifact validate P/text": "the artifact is cut off at byte 10",
    "artifact dump P/a.mender P": "is not empty",
    "artifact dump P/a.mender P/no/such": "to P/no/such: No such file or directory mkdir -p P/no",
    "artifact write": "",
    "artifact write bootstrap-artifact -n x -t y": "-o",
    "artifact write bootstrap-artifact -n x -t y -o P/no/such": "cannot write P/no/such: No such file or"
    " directory mkdir -p P/no",
    "artifact write bootstrap-artifact -n x -t y -o P/folder": "P/folder: it is no plain file",
    "artifact write bootstrap-artifact -n x -t y -o /dev/null": "/dev/null: it is no plain file",
    "artifact write module-image -T m -n x -t y -f P/text -o P/text": "P/text would be overwritten",
    "artifact write module-image -T m -n x -t y -f P/text -o P/folder/../text": "would be overwritten",
    "artifact write module-image -T m -n x -t y -f P/empty -m P/text -o P/text": "would be overwritten",
    "artifact write module-image -T m -n x -t y -f P/text -k P/key.pem -o P/key.pem": "would be overwritten",
    "artifact write rootfs-image -n x -t y -f P/none -o P/x": "cannot read P/none",
    "artifact sign P/a.mender -k P/key.pem -o P/key.pem": "P/key.pem would be overwritten",
    "artifact sign P/none -k P/key.pem": "cannot read P/none: No such file or directory",
    "artifact sign P/a.mender -k P/none": "P/none cannot be read: No such file or directory",
    "artifact sign P/a.mender -k P/folder": "P/folder cannot be read: Is a directory",
    "artifact sign P/a.mender -k P/text": "P/text is no private key, or a damaged one PEM with BEGIN",
    "artifact sign P/a.mender -k P/empty": "P/empty is no private key, or a damaged one PEM with BEGIN",
    "artifact sign P/a.mender -k P/garbled.pem": "P/garbled.pem is no private key, or a damaged one",
    "artifact sign P/a.mender -k P/public.pem": "P/public.pem is a public key",
    "artifact sign P/a.mender -k P/certificate.pem": "P/certificate.pem is a certificate",
    "artifact sign P/a.mender -k P/ssh": "a key in OpenSSH's own format, no private key in PEM ssh-keygen",
    "artifact sign P/a.mender -k P/ssh.pub": "a public key of OpenSSH",
    "artifact sign P/a.mender -k P/locked.pem": "has a passphrase put it into the environment: OTA_KEY_PASS",
    "bench-server --servers other:1": "is not DATABASE:PROCESSES",
    "bench-server --output P/no/such": "there is no folder P/no for --output",
    "board": "",
    "board status --dir P": "there is no board in P",
    "board boot --dir P": "there is no board in P",
    "board console --dir P": "there is no board in P",
    "board shell --dir P true": "there is no board in P",
    "board power-cut --dir P": "there is no board in P",
    "board reset --dir P": "there is no board in P",
    "board create --dir P/board --kind other": "no board is called other",
    "completion": "SHELL",
    "completion tcsh": "tcsh",
    "flash": "IMAGE is missing",
    "flash P/text": "no image of a card",
    "inspect": "IMAGE",
    "inspect P/none": "P/none",
    "inspect EMPTY": "the path is empty",
    "inspect footprint P --budget P/none": "cannot read the budget P/none: No such file or directory",
    "inspect footprint EMPTY": "the path is empty",
    "rehearse --scripts EMPTY": "the path is empty",
    "flash P/a.mender EMPTY": "the path is empty",
    "inspect P/text": "P/text",
    "rehearse": "",
    "rehearse --scripts P/none": "P/none",
    "server token list": "there is no server in server-data",
    "server --data P/wrong-data token list": "cannot use the data folder P/wrong-data: file is",
    "server --data P/wrong-data --port 0": "cannot use the data folder P/wrong-data: file is not a database",
    "server --data P/text --port 0": "cannot use the data folder P/text: ",
    "server --data /proc/none --port 0": "cannot use the data folder /proc/none: No such file or directory",
    "server --database-url postgresql+psycopg://u:secret@127.0.0.1:1/x token list": "the database"
    " postgresql+psycopg://u:***@127.0.0.1:1/x cannot be opened: ",
    "server --data P/data token create x --scope all": "is not one of read, deploy, admin",
    "server --data P/data token revoke none": "there is no token none",
    "server --data P/data user add someone": "nobody can be asked for the password",
    "server --data P/data user password none": "nobody can be asked for the password",
    "server --data P/data user remove none": "none",
    "server --port 0 --tls-cert P/text": "--tls-cert and --tls-key go together",
    "server --port 0 --tls-cert P/text --tls-key P/key.pem": "cannot be used: ",
    "server --port 0 --tls-cert P/certificate.pem --tls-key P/locked.pem": "the key without a passphrase",
    "server --port 70000": "65535",
    "server --host no.such.host.invalid": "cannot listen on no.such.host.invalid",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input(
    line: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "folder")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.pem")}
    words = [word.replace("P", str(place), 1) if word[:1] == "P" else word for word in line.split()]
    assert ota.main(["" if word == "EMPTY" else word for word in words]) == 2
    out, err = capsys.readouterr()
    said = " ".join(err.split()).replace(str(place), "P")
    if not line or line in {"board", "artifact write"}:
        assert "sage: ota" in out + err
    assert WRONG[line] in said
    assert "secret" not in said
    assert "cryptography.io" not in said
    assert before == {path: path.stat().st_mtime_ns for path in place.rglob("*.pem")}


def test_a_passphrase_that_is_not_needed_or_wrong(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = ["artifact", "sign", str(place / "a.mender"), "-o", str(tmp_path / "x"), "-k"]
    monkeypatch.setenv("OTA_KEY_PASSPHRASE", "secret")
    assert ota.main([*sign, str(place / "key.pem")]) == 0
    assert ota.main([*sign, str(place / "locked.pem")]) == 0
    monkeypatch.setenv("OTA_KEY_PASSPHRASE", "wrong")
    assert ota.main([*sign, str(place / "locked.pem")]) == 2
    assert "does not open with this passphrase" in capsys.readouterr().err


# JSON


def test_every_listing_can_be_one_json_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["server", "--data", str(place / "data")]
    assert ota.main([*data, "token", "create", "ci", "--scope", "deploy"]) == 0
    capsys.readouterr()
    table: tuple[tuple[list[str], object], ...] = (
        ([*data, "token", "list"], [{"name": "ci", "scope": "deploy", "user": None, "used_at": None}]),
        ([*data, "user", "list"], []),
        (
            ["artifact", "read", str(place / "a.mender")],
            {
                "name": "release-1",
                "payload_type": None,
                "device_types": ["board"],
                "signed": False,
                "files": [],
            },
        ),
        (["inspect", str(place / "a.mender")], {"kind": "artifact"}),
        (["flash", "--list"], None),
    )
    for words, expected in table:
        assert ota.main([*words, "--json"]) == 0, words
        out, err = capsys.readouterr()
        document = json.loads(out)
        assert err == ""
        if isinstance(expected, dict):
            assert {key: document[key] for key in expected} == expected
        elif expected is not None:
            assert document == expected


def test_json_is_the_option_of_every_command_that_prints_data() -> None:
    """And a flag everywhere: a file to write to is --output."""
    from update_tools.completion.trees import root

    commands = ("bench-server", "board status", "server token list", "server user list", "artifact read")
    for path in (*commands, "inspect", "flash", "rehearse"):
        command = root(ota.SUBCOMMANDS)
        for name in path.split():
            command = command.commands[name][1]()
        option = command.option("--json")
        assert option is not None, path
        assert option.value is None, path


# Real processes: signals, pipes, bugs


def start(*words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENV
    )


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Path]:
    """A file that takes for ever to read: a pipe that nobody writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)
    yield path
    os.close(keep)


def has_open(pid: int, path: Path) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink() == path:
                return True
        except FileNotFoundError:
            pass  # closed meanwhile
    return False


def test_interrupted_while_it_waits(slow_disk: Path) -> None:
    process = start("artifact", "validate", str(slow_disk))
    while not has_open(process.pid, slow_disk):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_interrupted_server(tmp_path: Path) -> None:
    process = start("server", "--data", str(tmp_path), "--port", "0")
    assert process.stderr is not None
    for line in process.stderr:
        if "/setup?key=" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", [("artifact", "read", "P/a.mender"), ("server", "--help"), ("inspect", "--list"), ("--help",)]
)
def test_a_reader_that_went_away(words: tuple[str, ...], place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*(word.replace("P", str(place)) for word in words), stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == ""


@pytest.mark.parametrize("words", [("artifact", "read", "P/a.mender"), ("inspect", "--list")])
def test_an_output_without_room(words: tuple[str, ...], place: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = start(*(word.replace("P", str(place)) for word in words), stdout=full)
    os.close(full)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "ota: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("kind", ["typer", "run"])
def test_a_bug_shows_its_whole_traceback(kind: str, tmp_path: Path) -> None:
    bodies = {
        "typer": "import typer\napp = typer.Typer()\nfor name in 'fh': app.command(name)(lambda: g())\n",
        "run": "def run(words): g()\n",
    }
    (tmp_path / "broken.py").write_text(bodies[kind] + "def g(): return {}['no such key']\n")
    program = (
        "import sys, update_tools.__main__ as m; m.SUBCOMMANDS = {'b': ('broken', 'B.')}; sys.exit(m.main())"
    )
    env = {**ENV, "PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}"}
    argv = [sys.executable, "-c", program, "b", "f"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("KeyError: 'no such key'\n")


# Progress


@pytest.fixture(scope="module")
def large(place: Path) -> Path:
    with open(place / "large", "wb") as file:
        for _ in range(80):
            file.write(os.urandom(1 << 20))
    return place / "large"


def test_progress_on_a_terminal_and_silence_in_a_pipe(large: Path, place: Path, tmp_path: Path) -> None:
    common = ["-n", "x", "-t", "y", "-T", "m", "-f", str(large), "--compression", "none"]
    made = str(tmp_path / "l.mender")
    for words in (
        ["artifact", "write", "module-image", *common, "-o", made],
        ["artifact", "validate", made],
        ["artifact", "sign", made, "-k", str(place / "key.pem")],
    ):
        process = start(*words)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), words
        assert "%" not in out
        terminal = pexpect.spawn(
            sys.executable,
            ["-c", PROGRAM, *words, *(["--force"] if "sign" in words else [])],
            env=ENV,
            timeout=120,
        )
        terminal.expect_exact("MB")
        terminal.expect(pexpect.EOF)
        assert terminal.wait() == 0, words


def test_a_long_inspection_tells_that_it_goes_on(place: Path) -> None:
    program = PROGRAM.replace(
        "import sys;",
        "import sys; import update_tools.inspect.terminal as it; it._SHOWN_AFTER_S = 0.0;",
    )
    terminal = pexpect.spawn(
        sys.executable, ["-c", program, "inspect", str(place / "folder")], env=ENV, timeout=60
    )
    terminal.expect_exact("looking into")
    terminal.expect(pexpect.EOF)
    assert terminal.wait() == 3


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed: str, place: Path) -> None:
    """As cron and some services start programs."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM]
    for words in (
        ["inspect", str(place / "folder")],
        ["flash", "--list"],
        ["artifact", "read", str(place / "a.mender")],
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=ENV)
        assert done.returncode == (3 if words[0] == "inspect" else 0), words
        assert done.stderr == ""
        assert bool(done.stdout) == (">&-" not in closed.split())
