# SPDX-License-Identifier: Apache-2.0
"""External update modules: real shell programs, real FIFOs."""

from __future__ import annotations

import io
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.leftovers import descriptors, tasks

from update_agent import modules, payload, streams
from update_agent.config import Config
from update_agent.errors import ArtifactError, PayloadError
from update_agent.log import Log
from update_agent.loop import plain_wait

# What a module does that takes its payload as streams, in the order of the protocol.
STREAM = """
mkdir -p tmp/got
while :; do
    line=$(cat stream-next)
    [ -n "$line" ] || break
    echo "$line" >> tmp/lines
    path=${line%% *}
    cat "$path" > "tmp/got/${path##*/}"
done
"""


class Header:
    name, group = "v2", "g2"
    payload_type: str | None = "thing"
    header_info, type_info = b'{ "a":1}', b'{"type": "thing"}'
    meta_data: bytes | None = b'{"k": 1}'


class File:
    def __init__(self, name: str, data: bytes, error: Exception | None = None) -> None:
        self.name = name
        self.size = len(data)
        self.data = io.BytesIO(data)
        self.error = error

    def readinto(self, buffer: memoryview) -> int:
        count = self.data.readinto(buffer[:50_000])
        if not count and self.error:
            raise self.error
        return count


class Bench:
    """A module made from shell text, and its tree."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = Config()
        self.config.data_dir = str(directory / "share")
        self.config.datastore = str(directory / "store")
        Path(self.config.modules_dir()).mkdir(parents=True)
        self.calls = directory / "calls"
        self.tree = Path(self.config.tree_dir())
        self.stream = io.StringIO()

    def module(self, **bodies: str) -> payload.Payload:
        """A module with a shell body for each call, prepared; unknown calls exit with 0."""
        cases = "".join(f"{name}) {body}\n;;\n" for name, body in bodies.items())
        path = Path(self.config.modules_dir()) / "thing"
        path.write_text(f'#!/bin/sh\nset -eu\necho "$1" >> {self.calls}\ncase "$1" in\n{cases}esac\n')
        path.chmod(0o755)
        module = self.find("thing")
        module.prepare(Header(), current={"artifact_name": "v1", "device_type": "virt64"})
        return module

    def find(self, name: str) -> payload.Payload:
        return payload.find(name, self.config, Log(stream=self.stream), None, plain_wait)  # type: ignore[arg-type]

    @property
    def ran(self) -> list[str]:
        return self.calls.read_text().split()

    @property
    def log(self) -> str:
        return self.stream.getvalue()

    @property
    def left(self) -> list[str]:
        return sorted(os.listdir(self.tree))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    descriptors_before, tasks_before = descriptors(), tasks()
    yield Bench(tmp_path)
    # No descriptor and no thread that waits for a FIFO stays behind; one that just ended may be on its way.
    deadline = time.monotonic() + 10
    while tasks() - tasks_before and time.monotonic() < deadline:
        os.sched_yield()
    assert not tasks() - tasks_before
    assert not descriptors() - descriptors_before


# Calls


def test_a_call_has_two_arguments_and_runs_in_the_tree(bench: Bench) -> None:
    module = bench.module(ArtifactInstall='cat; echo "$# $2 $PWD" > tmp/seen; echo out; echo err >&2')
    module.call("ArtifactInstall")
    assert (bench.tree / "tmp/seen").read_text().split() == ["2", str(bench.tree), str(bench.tree)]
    assert "INFO: Update Module output (stdout): out\n" in bench.log
    assert "INFO: Update Module output (stderr): err\n" in bench.log


@pytest.mark.parametrize(
    ("end", "words"), [("exit 7", "exited with 7"), ("kill -9 $$", "was killed by signal 9")]
)
def test_a_failing_call(bench: Bench, end: str, words: str) -> None:
    module = bench.module(ArtifactCommit=end)
    with pytest.raises(PayloadError, match=rf"^update module \S+/v3/thing: ArtifactCommit {words} "):
        module.call("ArtifactCommit")


def test_the_time_limit_ends_the_whole_group(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.config.module_timeout_s = 0.3  # type: ignore[assignment]
    monkeypatch.setattr(modules, "GRACE_S", 0.2)
    module = bench.module(ArtifactInstall="trap 'echo TERM >> tmp/seen' TERM; while :; do sleep 0.05; done")
    with pytest.raises(PayloadError, match=r"ArtifactInstall ran into its time limit .*ModuleTimeoutSeconds"):
        module.call("ArtifactInstall")
    assert (bench.tree / "tmp/seen").read_text().startswith("TERM")


def test_without_a_tree_every_call_but_cleanup_fails(bench: Bench) -> None:
    module = bench.module()
    module.cleanup()
    assert bench.ran == ["Cleanup"]
    for act in (lambda: module.call("ArtifactRollback"), lambda: module.query("SupportsRollback")):
        with pytest.raises(PayloadError, match="is missing"):
            act()
    module.cleanup()
    assert bench.ran == ["Cleanup"]


def test_the_tree_is_deleted_whatever_cleanup_returns(bench: Bench) -> None:
    module = bench.module(Cleanup="exit 1")
    with pytest.raises(PayloadError, match="Cleanup exited with 1"):
        module.cleanup()
    assert not bench.tree.exists()


def test_pauses_are_not_known_to_modules(bench: Bench) -> None:
    module = bench.module()
    module.hold("ArtifactReboot_Enter")
    module.release("ArtifactReboot_Enter")
    assert not module.rebooted("ArtifactReboot_Enter")
    assert not bench.calls.exists()


# Queries


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (":", "No"),
        ("echo", "No"),  # as `echo "$answer"` does without one; the clients take it so
        ("echo No", "No"),
        ("echo Yes", "Yes"),
        ("printf Automatic", "Automatic"),
        ("echo Yes; echo x >&2", "Yes"),
    ],
)
def test_answers(bench: Bench, body: str, answer: str) -> None:
    assert bench.module(NeedsArtifactReboot=body).query("NeedsArtifactReboot") == answer


@pytest.mark.parametrize(
    "body",
    [
        "echo yes",
        "echo ' Yes'",
        "echo 'Yes '",
        "echo; echo",
        "echo Yes; echo Yes",
        "echo Automatic",
        "yes Yes | head -c 99999",
    ],
)
def test_answers_that_are_none(bench: Bench, body: str) -> None:
    with pytest.raises(PayloadError, match="one line with one of No, Yes"):
        bench.module(SupportsRollback=body).query("SupportsRollback")


def test_a_failing_query(bench: Bench) -> None:
    with pytest.raises(PayloadError, match="SupportsRollback exited with 1"):
        bench.module(SupportsRollback="echo Yes; exit 1").query("SupportsRollback")


# Download


def payload_files() -> list[File]:
    return [File("one", b"1" * 300_000), File("empty", b""), File("b-2.bin", os.urandom(70_001))]


@pytest.mark.parametrize("sizes", [False, True])
def test_streams(bench: Bench, sizes: bool) -> None:
    call = "DownloadWithFileSizes" if sizes else "Download"
    module = bench.module(ProvidePayloadFileSizes="echo Yes" if sizes else ":", **{call: STREAM})
    files = payload_files()
    module.download(iter(files))
    assert bench.ran == ["ProvidePayloadFileSizes", call]
    lines = (bench.tree / "tmp/lines").read_text().splitlines()
    if sizes:
        assert lines == ["streams/one 300000", "streams/empty 0", "streams/b-2.bin 70001"]
    else:
        assert lines == ["streams/one", "streams/empty", "streams/b-2.bin"]
    for file in files:
        assert (bench.tree / "tmp/got" / file.name).read_bytes() == file.data.getvalue()
    assert not {"files", "streams", "stream-next"} & set(bench.left)


def test_fifos_are_private_and_made_in_time(bench: Bench) -> None:
    body = (
        "stat -c %a:%F stream-next > tmp/mode; cat stream-next > tmp/l; stat -c %a:%F streams/* >> tmp/mode\n"
    )
    module = bench.module(Download=f"{body}cat streams/one > /dev/null\n{STREAM}")
    module.download(iter([File("one", b"x")]))
    assert (bench.tree / "tmp/mode").read_text().split() == ["600:fifo", "600:fifo"]


def test_no_files_is_one_empty_read(bench: Bench) -> None:
    module = bench.module(Download="cat stream-next > tmp/read; test ! -s tmp/read")
    module.download(iter([]))
    assert bench.left[-2:] == ["tmp", "version"]


def test_a_module_that_does_not_ask_gets_files(bench: Bench) -> None:
    module = bench.module(Download="echo nothing to do")
    files = payload_files()
    module.download(iter(files))
    assert sorted(os.listdir(bench.tree / "files")) == ["b-2.bin", "empty", "one"]
    for file in files:
        path = bench.tree / "files" / file.name
        assert path.read_bytes() == file.data.getvalue()
        assert stat.S_ISREG(path.stat().st_mode)
    assert not {"streams", "stream-next"} & set(bench.left)


def test_a_module_that_does_not_ask_and_no_files(bench: Bench) -> None:
    bench.module().download(iter([]))
    assert "files" not in bench.left


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 3", "Download exited with 3"),
        ("cat stream-next > /dev/null; exit 3", "Download exited with 3"),
        ("cat stream-next > /dev/null; head -c 10 streams/one > /dev/null; exit 3", "Download exited with 3"),
        ("kill -9 $$", "was killed by signal 9"),
        # exit 0, but not all was taken
        (": < stream-next", "exited with 0 before it had taken the whole payload"),
        ("cat stream-next > /dev/null", r"whole payload \(at streams/one\)"),
        (
            "cat stream-next > /dev/null; cat streams/one > /dev/null",
            r"whole payload \(after 300000 of 300000 bytes",
        ),
        (
            "cat stream-next > /dev/null; head -c 10 streams/one > /dev/null",
            r"whole payload \(after \d+ of 300000 bytes",
        ),
    ],
)
def test_modules_that_do_not_finish(bench: Bench, body: str, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        bench.module(Download=body).download(iter([File("one", b"1" * 300_000)]))
    assert "files" not in bench.left
    assert "stream-next" not in bench.left


def test_a_stream_closed_early_does_not_wait_for_the_time_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_BROKEN_GRACE_S", 0.2)
    body = "cat stream-next > /dev/null; head -c 10 streams/one > /dev/null; exec sleep 1000"
    with pytest.raises(PayloadError, match="closed a stream early"):
        bench.module(Download=body).download(iter([File("one", b"1" * 300_000)]))


@pytest.mark.parametrize("body", ["exec sleep 1000", "cat stream-next > /dev/null; exec sleep 1000"])
def test_a_module_that_hangs_runs_into_the_time_limit(
    bench: Bench, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench.module(Download=body)
    monkeypatch.setattr(module, "_timeout_s", 0.3)
    with pytest.raises(PayloadError, match="Download ran into its time limit"):
        module.download(iter([File("one", b"1")]))


class Stalled(File):
    """A source that has nothing more to give after the first bytes, as a network that went away."""

    def __init__(self) -> None:
        super().__init__("one", b"1" * 300_000)
        self.pipe = os.pipe()

    def readinto(self, buffer: memoryview) -> int:
        try:
            return (
                super().readinto(buffer) if self.data.tell() < 100_000 else os.readv(self.pipe[0], [buffer])
            )
        except Exception as error:
            raise AssertionError("the time limit is not for those who catch and try again") from error


@pytest.mark.parametrize("end", ["exit 1", "sleep 1000"])
def test_a_source_that_gives_nothing_does_not_keep_the_module_beyond_its_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(modules, "GRACE_S", 0.2)
    module = bench.module(Download=f"trap '{end}' TERM\n{STREAM}\n: > tmp/complete")
    monkeypatch.setattr(module, "_timeout_s", 0.5)
    stalled = Stalled()
    with pytest.raises(PayloadError, match=r"Download ran into its time limit .*ModuleTimeoutSeconds"):
        module.download(iter([stalled]))
    for fd in stalled.pipe:
        os.close(fd)
    assert not (bench.tree / "tmp/complete").exists()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_error_of_the_source_ends_the_module_before_it_sees_an_end(bench: Bench) -> None:
    module = bench.module(Download=f"{STREAM}\n: > tmp/complete")
    with pytest.raises(ArtifactError, match="wrong checksum"):
        module.download(iter([File("one", b"1" * 300_000, ArtifactError("wrong checksum"))]))
    assert not (bench.tree / "tmp/complete").exists()
    assert "streams" not in bench.left
    module.cleanup()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\nb"])
@pytest.mark.parametrize("body", [STREAM, ":"])
def test_payload_names_that_leave_the_tree(bench: Bench, name: str, body: str) -> None:
    with pytest.raises(PayloadError, match="would leave the file tree"):
        bench.module(Download=body).download(iter([File(name, b"x")]))
    assert not (bench.tree.parent / "x").exists()


def test_a_failing_size_query_fails_the_download(bench: Bench) -> None:
    module = bench.module(ProvidePayloadFileSizes="echo maybe")
    with pytest.raises(PayloadError, match="answered 'maybe' to ProvidePayloadFileSizes"):
        module.download(iter([]))
    assert bench.ran == ["ProvidePayloadFileSizes"]


def test_a_module_may_print_more_than_a_pipe_holds_while_it_is_fed(bench: Bench) -> None:
    module = bench.module(
        Download=f"head -c 200000 /dev/zero | tr '\\0' '\\n'; {STREAM} head -c 99999 /dev/zero >&2"
    )
    module.download(iter(payload_files()))
    assert 10_000 < bench.log.count("\n") < 20_000  # the data partition must not fill up with a log of it
    assert "Update Module output (stdout): [output truncated after 10240 lines]" in bench.log


@pytest.mark.parametrize("body", ["rm stream-next", "rm stream-next; : > stream-next", "rm -r tmp header"])
def test_a_module_that_tampers_with_its_tree_does_not_hang_us(bench: Bench, body: str) -> None:
    bench.module(Download=body).download(iter([File("one", b"1")]))
    assert (bench.tree / "files/one").read_bytes() == b"1"


@pytest.mark.parametrize(
    "body",
    [
        "rm -r streams stream-next",
        "cat streams/one > /dev/null; rm -r streams stream-next",
        "rm stream-next; cat streams/one > /dev/null; sleep 0.2",
        "rm stream-next; mkdir stream-next; cat streams/one > /dev/null; sleep 0.2",
        "cat streams/one > /dev/null; rm -r ../tree; sleep 0.2",
    ],
)
def test_a_module_that_tampers_with_its_streams_is_told(bench: Bench, body: str) -> None:
    module = bench.module(Download=f"cat stream-next > /dev/null; {body}")
    with pytest.raises(PayloadError, match="exited with 0 before it had taken the whole payload"):
        module.download(iter([File("one", b"1" * 300_000), File("two", b"2")]))
    module.cleanup()
    assert not bench.tree.exists()


def test_a_file_where_the_streams_belong_is_told(bench: Bench) -> None:
    with pytest.raises(PayloadError, match=r"cannot make the FIFO .*/streams/one: File exists"):
        bench.module(Download=f": > streams; {STREAM}").download(iter([File("one", b"1")]))
