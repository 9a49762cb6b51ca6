# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from tests.support.leftovers import children

from update_agent import child
from update_agent.config import TierError
from update_agent.errors import ArtifactError, ConfigError, TransferError
from update_agent.log import Log
from update_agent.loop import Loop, plain_wait


@pytest.fixture
def log() -> Log:
    return Log(stream=io.StringIO())


OTHERS: set[int] = set()  # what runs for other tests


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(children())


def no_children() -> bool:
    return children() <= OTHERS


def test_the_result_comes_back_and_the_child_was_another_process(log: Log) -> None:
    result = child.run(lambda _: {"pid": os.getpid(), "text": "ä" * 200_000}, log=log)
    assert isinstance(result, dict)
    assert result["pid"] != os.getpid()
    assert result["text"] == "ä" * 200_000
    assert no_children()


def test_messages_and_questions(log: Log) -> None:
    heard: list[dict[str, object]] = []

    def answer(message: dict[str, object]) -> dict[str, object] | None:
        heard.append(message)
        return {"double": int(str(message["number"])) * 2} if "number" in message else None

    def work(channel: child.Channel) -> object:
        channel.send({"progress": 1})
        return [channel.ask({"number": 21}), channel.ask({"other": True})]

    assert child.run(work, answer=answer, log=log) == [{"double": 42}, {}]
    assert heard == [{"progress": 1}, {"number": 21}, {"other": True}]


def test_an_error_is_raised_again_with_its_class_message_and_hint(log: Log) -> None:
    def work(_: child.Channel) -> object:
        raise ArtifactError("bad checksum", hint="copy it again")

    with pytest.raises(ArtifactError) as caught:
        child.run(work, log=log)
    assert (caught.value.message, caught.value.hint) == ("bad checksum", "copy it again")


def test_an_error_class_of_another_module_comes_back_as_its_base(log: Log) -> None:
    def work(_: child.Channel) -> object:
        raise TierError("no such tier")

    with pytest.raises(ConfigError, match="no such tier"):
        child.run(work, log=log)


def test_a_bug_is_logged_with_its_traceback_and_does_not_look_like_success() -> None:
    stream = os.memfd_create("log")

    def work(_: child.Channel) -> object:
        return {}["missing"]  # type: ignore[index]

    with open(stream, "w+", encoding="utf-8") as file:
        with pytest.raises(TransferError, match="KeyError"):
            child.run(work, log=Log(stream=file))
        file.seek(0)
        assert "Traceback" in file.read()


def test_a_killed_child_is_explained(log: Log) -> None:
    def work(_: child.Channel) -> object:
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    with pytest.raises(TransferError, match=r"signal 9.*memory"):
        child.run(work, log=log, what="the download")
    assert no_children()


def test_leaving_the_child_by_sys_exit_does_not_run_the_parents_code_twice(log: Log) -> None:
    def work(_: child.Channel) -> object:
        sys.exit(0)

    before = os.getpid()
    with pytest.raises(TransferError):
        child.run(work, log=log)
    assert os.getpid() == before


def test_an_error_in_the_parent_ends_the_child_and_its_program(log: Log) -> None:
    """The program's own end of a pipe closes only when it is dead."""
    read_fd, write_fd = os.pipe()

    def work(channel: child.Channel) -> object:
        os.close(read_fd)
        os.set_inheritable(write_fd, True)
        channel.send({"started": True})
        from update_agent import proc

        proc.run(["sleep", "600"], timeout_s=600)
        return None

    def answer(_: dict[str, object]) -> None:
        raise InterruptedError("the parent has other plans")

    with pytest.raises(InterruptedError):
        child.run(work, answer=answer, log=log)
    os.close(write_fd)
    assert plain_wait([read_fd], time.monotonic() + 30) == [read_fd]
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)
    assert no_children()


def test_the_childs_signals_are_its_own(log: Log) -> None:
    def handler(_number: int, _frame: object) -> None:
        raise AssertionError("the parent's handler ran in the child")

    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    old = signal.signal(signal.SIGUSR1, handler)
    old_wakeup = signal.set_wakeup_fd(write_fd)
    try:

        def work(_: child.Channel) -> object:
            return [signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, signal.set_wakeup_fd(-1)]

        assert child.run(work, log=log) == [True, -1]
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.set_wakeup_fd(old_wakeup)
        signal.signal(signal.SIGUSR1, old)
        os.close(read_fd)
        os.close(write_fd)


def test_other_descriptors_are_served_while_the_child_works(log: Log) -> None:
    """The child ends only after the parent has served a descriptor that the child makes readable."""
    loop = Loop()
    to_parent, from_child = os.pipe()
    to_child, from_parent = os.pipe()

    def served() -> None:
        os.read(to_parent, 1)
        os.write(from_parent, b"x")

    loop.watch(to_parent, served)

    def work(_: child.Channel) -> object:
        os.write(from_child, b"x")
        return os.read(to_child, 1).decode()

    assert child.run(work, log=log, wait=loop.wait) == "x"
    for fd in (to_parent, from_child, to_child, from_parent):
        os.close(fd)


def test_the_child_dies_with_its_parent(log: Log) -> None:
    read_fd, write_fd = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(read_fd)

        def work(channel: child.Channel) -> object:
            channel.send({"started": True})
            signal.pause()
            return None

        def answer(_: dict[str, object]) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        child.run(work, answer=answer, log=log)
        os._exit(1)
    os.close(write_fd)
    assert os.waitpid(middle, 0)[1] == signal.SIGKILL
    assert plain_wait([read_fd], time.monotonic() + 30) == [read_fd]  # the grandchild held the last write end
    os.close(read_fd)


# A child for several tasks


def perform(_: child.Channel, task: dict[str, object]) -> object:
    """In the child: do what the task says."""
    if "fail" in task:
        raise ArtifactError("bad checksum", hint="copy it again")
    if "die" in task:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.fixture
def helper(log: Log) -> Iterator[child.Helper]:
    made = child.Helper(perform, log=log)
    yield made
    made.rest()
    assert no_children()


def test_one_child_does_all_tasks_until_it_is_told_to_rest(helper: child.Helper) -> None:
    first = helper.ask({}, what="a test")
    assert first != os.getpid()
    assert helper.ask({}, what="a test") == first
    helper.rest()
    assert no_children()
    helper.rest()
    assert helper.ask({}, what="a test") != first


def test_an_error_ends_it_and_the_next_task_has_a_new_one(helper: child.Helper) -> None:
    first = helper.ask({}, what="a test")
    with pytest.raises(ArtifactError) as caught:
        helper.ask({"fail": True}, what="a test")
    assert (caught.value.message, caught.value.hint) == ("bad checksum", "copy it again")
    assert no_children()
    assert helper.ask({}, what="a test") != first


def test_one_that_died_between_tasks_is_replaced(helper: child.Helper) -> None:
    pid = helper.ask({}, what="a test")
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert helper.ask({}, what="a test") != pid


def test_dying_in_a_task_names_the_task(helper: child.Helper) -> None:
    helper.ask({}, what="the poll")
    with pytest.raises(TransferError, match=r"for the download was killed \(signal 9\).*memory"):
        helper.ask({"die": True}, what="the download")
    assert isinstance(helper.ask({}, what="the poll"), int)


def test_an_error_in_the_parent_ends_it(log: Log) -> None:
    def ask(channel: child.Channel, _: dict[str, object]) -> object:
        return channel.ask({"question": 1})

    def answer(_: dict[str, object]) -> None:
        raise InterruptedError("the parent has other plans")

    helper = child.Helper(ask, log=log)
    with pytest.raises(InterruptedError):
        helper.ask({}, answer, what="a test")
    assert no_children()
    assert helper.ask({}, lambda _: {"answer": 2}, what="a test") == {"answer": 2}
    helper.rest()


def test_a_task_that_takes_long_is_given_up_when_something_matters_more(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(child, "_LOOK_S", 0.01)

    def sleep(_: child.Channel, task: dict[str, object]) -> object:
        time.sleep(float(str(task["s"])))
        return "slept"

    helper = child.Helper(sleep, log=log)
    looks: list[int] = []

    def give_up() -> bool:
        looks.append(1)
        return len(looks) == 3

    with pytest.raises(TransferError, match=r"^a test was given up"):
        helper.ask({"s": 600}, what="a test", give_up=give_up)
    assert len(looks) == 3
    assert no_children()
    assert helper.ask({"s": 0.2}, what="a test", give_up=lambda: False) == "slept"
    monkeypatch.setattr(child, "_PATIENCE_S", 60)
    assert helper.ask({"s": 0}, what="a test", give_up=lambda: True) == "slept"  # it does not take long
    helper.rest()


def test_what_a_task_leaves_in_memory_is_there_for_the_next_and_not_in_the_parent(log: Log) -> None:
    kept: list[object] = []

    def keep(_: child.Channel, task: dict[str, object]) -> object:
        kept.append(task["number"])
        return kept

    helper = child.Helper(keep, log=log)
    assert [helper.ask({"number": number}, what="a test") for number in (1, 2)] == [[1], [1, 2]]
    helper.rest()
    assert kept == []


def test_the_resident_part_imports_nothing_big() -> None:
    from update_agent import proc

    code = (
        "import sys, update_agent.remote, update_agent.daemon, update_agent.ctl; "
        "print(sorted({'ssl', 'socket', 'http', 'urllib', 'hashlib', 'typing', 'ctypes', 'subprocess', "
        "'threading', 'dataclasses', 'tempfile', 're', 'enum', 'json', 'functools'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": "agent"}
    argv = [sys.executable, "-S", "-c", code]
    result, stdout, stderr = proc.output(argv, timeout_s=60, env=environment)
    assert result.ok, stderr
    assert stdout.strip() == b"[]"
