# SPDX-License-Identifier: Apache-2.0
"""Control maps: what the vectors do not say: refusals by name, waits, undo, saving, and properties."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import control
from update_agent.control import Pool, parse
from update_agent.errors import ControlError
from update_agent.states import WIRE_POINTS

A = "01234567-89ab-cdef-0123-456789abcdef"
B = "68711312-c913-11eb-a0ab-1ba9e86afdfd"
D = "da32f669-e82c-455e-848b-606e0110f0a0"
INSTALL, REBOOT, COMMIT = WIRE_POINTS
DAY_S = 86400
POLL_S = 1800


def make(map_id: str = A, priority: int = 0, point: str = INSTALL, **state: str) -> control.Map:
    states = {point: state} if state else {}
    return parse(json.dumps({"id": map_id, "priority": priority, "states": states}))


def pool_with(*maps: control.Map, now: float = 0.0, expiration_s: float = 3600) -> Pool:
    pool = Pool(expiration_s)
    for content in maps:
        pool.set_local(content, now)
    return pool


# Parsing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("null", "the map is null"),
        ("[]", "the map is [], must be an object"),
        ('"x"', 'the map is "x"'),
        ("{}", "id is null"),
        ('{"id":7}', "id is 7"),
        (f'{{"id":"{A}"}} true', "not JSON: Extra data"),
        (f'{{"id":"{A}","id":"{B}"}}', '"id" is given twice'),
        (f'{{"id":"{A}","ID":"{B}"}}', "the map has id twice"),
        (f'{{"id":"{A}","stages":{{}}}}', 'unknown field "stages" (it may have id, priority, states)'),
        (f'{{"id":"{A}","priority":1.0}}', "priority is 1.0, must be a whole number"),
        (f'{{"id":"{A}","priority":1e0}}', "priority is 1.0"),
        (f'{{"id":"{A}","priority":NaN}}', "NaN is not JSON"),
        (f'{{"id":"{A}","priority":-Infinity}}', "-Infinity is not JSON"),
        (f'{{"id":"{A}","priority":true}}', "priority is true"),
        (f'{{"id":"{A}","priority":"1"}}', 'priority is "1"'),
        (f'{{"id":"{A}","priority":""}}', 'priority is ""'),
        (f'{{"id":"{A}","priority":11}}', "priority is 11, must be -10 to 10"),
        (f'{{"id":"{A}","priority":-11}}', "priority is -11"),
        (f'{{"id":"{A}","priority":{"9" * 30}}}', "must be -10 to 10"),
        (f'{{"id":"{A}","priority":{"9" * 5000}}}', "not JSON"),
        (f'{{"id":"{A}","states":""}}', 'states is "", must be an object'),
        (f'{{"id":"{A}","states":[]}}', "states is []"),
        (
            f'{{"id":"{A}","states":{{"{INSTALL}":"pause"}}}}',
            f'states.{INSTALL} is "pause", must be an object',
        ),
        (
            f'{{"id":"{A}","states":{{"{INSTALL}":{{"action":"Pause"}}}}}}',
            f'states.{INSTALL}.action is "Pause"',
        ),
        (f'{{"id":"{A}","states":{{"{INSTALL}":{{"on_map_expire":"pause"}}}}}}', ".on_map_expire is"),
        (f'{{"id":"{A}","states":{{"{INSTALL}":{{"on_action_executed":[]}}}}}}', ".on_action_executed is []"),
        (
            f'{{"id":"{A}","states":{{"{INSTALL}":{{"act":"pause"}}}}}}',
            f"states.{INSTALL} has an unknown field",
        ),
        (f'{{"id":"{A}","states":{{"artifactinstall_enter":null}}}}', f"(write {INSTALL})"),
        (f'{{"id":"{A}","states":{{"Sync_Enter":null}}}}', 'states."Sync_Enter" is not a control point'),
        ('{"id":"\\ud800"}', 'id is "\\ud800"'),
        ("[" * 60000, "not JSON"),
        (" " * 70000, "too many"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_refusal_names_the_key(text: str, words: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300


def test_bytes_must_be_utf8() -> None:
    assert parse(f'{{"id":"{A}"}}'.encode()).id == A
    with pytest.raises(ControlError, match="not JSON"):
        parse(b'{"id":"\xff"}')


def test_null_and_empty_words_count_as_absent() -> None:
    content = parse(
        f'{{"id":"{A}","priority":null,"states":{{"{INSTALL}":null,"{REBOOT}":{{"action":"pause",'
        f'"on_map_expire":"","on_action_executed":null}}}}}}'
    )
    assert content.document() == {
        "id": A,
        "priority": 0,
        "states": {REBOOT: {"action": "pause", "on_map_expire": "fail", "on_action_executed": "pause"}},
    }


def test_field_names_match_in_any_case() -> None:
    content = parse(f'{{"Id":"{A}","PRIORITY":3,"States":{{"{COMMIT}":{{"Action":"fail"}}}}}}')
    assert (content.id, content.priority, content.states[COMMIT].action) == (A, 3, "fail")


def test_a_servers_null_is_not_a_map() -> None:
    with pytest.raises(ControlError, match="the map is null"):
        control.parse_value(None)


# Pool


def test_decision_tells_who_decided() -> None:
    pool = pool_with(
        make(A, 2, action="pause"),
        make(B, 2, action="pause"),
        make(D, 2, action="force_continue"),
        make(A, 1, action="fail"),
    )
    decision = pool.evaluate(INSTALL, 1)
    assert decision.action == "pause"
    assert [(entry.map.id, entry.map.priority) for entry in decision.by] == [(A, 2), (B, 2)]
    assert decision.by[0].expires_at == 3600


def test_nobody_decides_at_a_point_that_no_map_names() -> None:
    decision = pool_with(make(A, action="fail")).evaluate("Download_Leave", 0)
    assert (decision.action, decision.by) == ("continue", ())


def test_lower_priorities_are_not_advanced() -> None:
    once = {"action": "pause", "on_action_executed": "continue"}
    pool = pool_with(make(A, 1, **once), make(B, 0, **once))
    assert [pool.evaluate(INSTALL, 0).action for _ in range(3)] == ["pause", "pause", "continue"]


def test_server_map_for_another_deployment_changes_nothing() -> None:
    pool = Pool(3600)
    pool.set_server(make(D, action="pause"), D, 0)
    with pytest.raises(ControlError, match="the deployment is"):
        pool.set_server(make(A), D, 1)
    assert pool.has_deployment_map(D)


def test_server_map_replaces_local_maps_with_its_id() -> None:
    pool = pool_with(make(D, 5, action="fail"), make(A, action="pause"))
    pool.set_server(make(D, 0), D, 0)
    assert [(entry.map.id, entry.map.priority) for entry in pool.entries()] == [(A, 0), (D, 0)]


def test_what_is_removed_is_told() -> None:
    pool = pool_with(make(A, action="pause"))
    assert not pool.clear_deployment(D)
    assert not pool.drop_expired(3599)
    assert pool.drop_expired(3600)
    pool.set_server(make(D), D, 0)
    assert pool.clear_deployment(D)
    assert pool.entries() == []


def test_undo_gives_back_the_map_and_its_expiry() -> None:
    """A map that could not be saved was never there, nor does it wake anyone."""
    pool = pool_with(make(A, action="pause"))
    pool.evaluate(INSTALL, 10)
    mark = pool.mark()
    before = pool.next_deadline(20, D, POLL_S).at
    pool.set_local(make(A, action="force_continue"), 20)
    pool.set_local(make(B, action="fail"), 20)
    pool.undo(mark)
    assert pool.next_deadline(20, D, POLL_S).at == before
    assert [entry.expires_at for entry in pool.entries()] == [3600]
    assert pool.evaluate(INSTALL, 20).action == "pause"


# Waiting


def wake(pool: Pool, now: float, **options: float) -> tuple[float, str, str]:
    result = pool.next_deadline(now, D, POLL_S, **options)
    return result.at, result.then, result.why


def paused(*maps: control.Map, at: float = 0.0, expiration_s: float = 3600) -> Pool:
    pool = pool_with(*maps, expiration_s=expiration_s)
    assert pool.evaluate(INSTALL, at).action == "pause"
    return pool


def test_local_pause_wakes_at_half_time_then_every_30_seconds_then_at_expiry() -> None:
    pool = paused(make(action="pause"))
    assert wake(pool, 0) == (1800, "evaluate", "half-time")
    assert wake(pool, 1800) == (1830, "evaluate", "past half-time")
    assert wake(pool, 3569) == (3599, "evaluate", "past half-time")
    assert wake(pool, 3571) == (3600, "evaluate", "expiry")


def test_expiry_of_another_map_wakes() -> None:
    """A map that says nothing here and expires first may have something to say then."""
    pool = pool_with(make(B, action="continue", on_map_expire="fail"))
    pool.set_local(make(A, action="pause"), 2000)
    assert pool.evaluate(INSTALL, 2000).action == "pause"
    assert wake(pool, 3590) == (3600, "evaluate", "expiry")
    assert pool.evaluate(INSTALL, 3600).action == "fail"


def test_expiry_while_the_pause_was_reported_is_not_lost() -> None:
    pool = pool_with(make(B, action="pause", on_map_expire="continue"))
    pool.set_local(make(A, action="pause"), 3000)
    pool.evaluate(INSTALL, 3599)
    assert wake(pool, 3605) == (3605, "evaluate", "expiry")
    pool.evaluate(INSTALL, 3605)
    assert wake(pool, 3605) == (4800, "evaluate", "half-time")


def test_change_wakes_at_once_and_only_once() -> None:
    pool = paused(make(action="pause"), at=5)
    pool.set_local(make(B, action="pause"), 6)
    assert wake(pool, 7) == (7, "evaluate", "change")
    pool.evaluate(INSTALL, 7)
    assert wake(pool, 7) == (1800, "evaluate", "half-time")


def test_deleting_nothing_wakes_nobody() -> None:
    pool = paused(make(action="pause"))
    assert not pool.set_local(make(B), 1)
    assert wake(pool, 1)[2] == "half-time"
    assert pool.set_local(make(A), 1)
    assert wake(pool, 1)[2] == "change"


def test_refreshing_and_clearing_wake_nobody() -> None:
    pool = paused(make(A, action="pause"), at=1)
    pool.set_server(make(D), D, 1)
    assert wake(pool, 2)[2] == "half-time"
    pool.clear_deployment(D)
    pool.drop_expired(2)
    assert wake(pool, 2)[2] == "half-time"


def test_refresh_is_due_by_half_time_or_poll_interval() -> None:
    pool = Pool(600)
    pool.set_server(make(D, action="pause"), D, 0)
    pool.evaluate(INSTALL, 0)
    assert wake(pool, 10) == (300, "refresh", "half-time")
    pool = Pool(DAY_S)
    pool.set_server(make(D, action="pause"), D, 0)
    pool.evaluate(INSTALL, 0)
    assert wake(pool, 10) == (1800, "refresh", "poll")


def test_applications_that_wake_often_do_not_starve_the_refresh() -> None:
    pool = Pool(DAY_S)
    pool.set_server(make(D, action="pause"), D, 0)
    for now in (0.0, 700.0, 1400.0):
        pool.set_local(make(A, action="pause"), now)
        pool.evaluate(INSTALL, now)
        assert wake(pool, now) == (1800, "refresh", "poll")
    assert wake(pool, 1805) == (1805, "refresh", "poll")  # it passed while something else was done


def test_a_failed_refresh_waits_for_its_retry_and_still_hears_changes_and_expiries() -> None:
    pool = Pool(3600)
    pool.set_server(make(D, action="pause"), D, 0)
    pool.evaluate(INSTALL, 0)
    assert wake(pool, 1800, retry_at=1860) == (1860, "refresh", "retry")
    assert wake(pool, 3590, retry_at=3650) == (3600, "evaluate", "expiry")
    pool.set_local(make(A, action="fail"), 1810)
    assert wake(pool, 1811, retry_at=1860) == (1811, "evaluate", "change")


def test_loaded_maps_wake_at_half_of_the_boot_expiration() -> None:
    saved = pool_with(make(action="pause")).to_store(0)
    pool = Pool.from_store(saved, 50, expiration_s=3600, boot_expiration_s=600)
    pool.evaluate(INSTALL, 50)
    assert wake(pool, 50) == (350, "evaluate", "half-time")
    assert wake(pool, 649) == (650, "evaluate", "expiry")


def next_change(pool: Pool, now: float) -> tuple[float, str, str]:
    found = pool.next_change(now, D, POLL_S)
    return found.at, found.then, found.why


def test_maps_that_said_to_go_on_are_asked_again_only_after_a_change_or_an_expiry() -> None:
    """A hook holds meanwhile: approval for once must not be used up at half-time."""
    assert next_change(Pool(3600), 5)[0] == float("inf")
    pool = pool_with(make(action="force_continue", on_action_executed="pause"))
    assert pool.evaluate(INSTALL, 5).action == "continue"
    assert next_change(pool, 5) == (3600, "evaluate", "expiry")
    assert next_change(pool, 2000) == (3600, "evaluate", "expiry")
    assert next_change(pool, 3700) == (3700, "evaluate", "expiry")
    pool.evaluate(INSTALL, 3700)
    assert next_change(pool, 3700)[0] == float("inf")
    assert not pool.has_changed
    pool.set_local(make(B, action="pause"), 3701)
    assert pool.has_changed
    assert next_change(pool, 3702) == (3702, "evaluate", "change")


def test_the_server_is_asked_while_a_hook_holds() -> None:
    pool = Pool(DAY_S)
    pool.set_server(make(D), D, 100)
    pool.evaluate(INSTALL, 100)
    assert next_change(pool, 200) == (1900, "refresh", "poll")
    assert next_change(pool, 2000) == (2000, "refresh", "poll")  # due, however often a hook wakes the pause


# Saving


def load(text: str | None, now: float = 0.0) -> Pool:
    return Pool.from_store(text, now, expiration_s=3600, boot_expiration_s=600)


def test_empty_pool_is_not_saved() -> None:
    assert Pool(3600).to_store(0) is None
    assert load(None).entries() == []


def test_saved_form_is_the_references() -> None:
    pool = pool_with(make(A, action="pause"))
    pool.set_local(make(B, 1, COMMIT, action="fail"), 1)
    state = {"action": "pause", "on_map_expire": "fail", "on_action_executed": "pause"}
    assert json.loads(pool.to_store(3600) or "") == {
        "active": [{"id": B, "priority": 1, "states": {COMMIT: dict.fromkeys(state, "fail")}}],
        "expired": [{"id": A, "priority": 0, "states": {INSTALL: state}}],
    }


def test_maps_expired_when_saved_stay_expired() -> None:
    pool = load(pool_with(make(action="pause")).to_store(3600), now=100)
    assert pool.evaluate(INSTALL, 100).action == "fail"
    assert pool.drop_expired(100)


def test_the_reference_may_have_saved_null() -> None:
    assert load('{"active":null,"expired":null}').entries() == []


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '{"active":{}}', '{"active":[{}]}', '{"expired":[{"id":"x"}]}', '{"active":[null]}'],
)
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ControlError):
        load(text)


def test_a_server_map_without_states_is_still_there_after_a_restart() -> None:
    pool = Pool(3600)
    pool.set_server(make(D), D, 0)
    assert load(pool.to_store(0)).has_deployment_map(D)


# Properties

IDS = st.sampled_from([A, B, D, A.upper()])
ACTIONS = st.sampled_from(control.ACTIONS)
STATE = st.fixed_dictionaries(
    {},
    optional={
        "action": ACTIONS,
        "on_map_expire": st.sampled_from(control.EXPIRE_ACTIONS),
        "on_action_executed": ACTIONS,
    },
)
STATES = st.dictionaries(st.sampled_from(WIRE_POINTS), STATE)
MAPS = st.fixed_dictionaries({"id": IDS, "priority": st.integers(-10, 10), "states": STATES}).map(
    control.parse_value
)
STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ACTIONS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "ID", "priority", "states", "action", "on_map_expire", INSTALL, "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.text() | st.binary())
def test_parse_refuses_garbage_with_its_own_error_only(text: str | bytes) -> None:
    with pytest.raises(ControlError):
        parse(text)


@given(
    st.fixed_dictionaries(
        {"id": IDS},
        optional={"priority": STRANGE, "states": STRANGE | st.dictionaries(st.text(), STRANGE), "x": STRANGE},
    )
)
def test_parse_takes_or_refuses_what_resembles_a_map(value: object) -> None:
    try:
        content = parse(json.dumps(value))
    except ControlError:
        return
    assert control.parse_value(content.document()).document() == content.document()


@given(MAPS)
def test_canonical_form_is_a_fixed_point(content: control.Map) -> None:
    text = json.dumps(content.document())
    assert parse(text).document() == json.loads(text)


@given(st.lists(ACTIONS, min_size=1, max_size=5), st.integers(-10, 10))
def test_within_a_priority_the_most_careful_vote_wins(votes: list[str], priority: int) -> None:
    maps = [
        make(f"{number:08d}{A[8:]}", priority, action=vote, on_action_executed="fail")
        for number, vote in enumerate(votes)
    ]
    expected = next(word for word in ("fail", "pause", "force_continue", "continue") if word in votes)
    action = pool_with(*maps).evaluate(INSTALL, 0).action
    assert action == {"force_continue": "continue"}.get(expected, expected)


@given(st.dictionaries(st.integers(-10, 10), ACTIONS))
def test_the_highest_priority_with_an_opinion_decides(votes: dict[int, str]) -> None:
    maps = [make(A, priority, action=vote, on_action_executed="fail") for priority, vote in votes.items()]
    opinions = [votes[priority] for priority in sorted(votes, reverse=True) if votes[priority] != "continue"]
    expected = opinions[0] if opinions else "continue"
    action = pool_with(*maps).evaluate(INSTALL, 0).action
    assert action == {"force_continue": "continue"}.get(expected, expected)


@given(st.lists(st.tuples(MAPS, st.integers(0, 5000))), st.lists(st.sampled_from(WIRE_POINTS)))
def test_saving_and_loading_keeps_every_map(maps: list[tuple[control.Map, int]], points: list[str]) -> None:
    pool = Pool(3600)
    for content, at in sorted(maps, key=lambda pair: pair[1]):
        pool.set_local(content, at)
    for point in points:
        pool.evaluate(point, 5000)
    text = pool.to_store(5000)
    loaded = load(text, now=7)
    assert loaded.to_store(7) == text
    assert [entry.document() for entry in loaded.entries()] == [entry.document() for entry in pool.entries()]
    for point in WIRE_POINTS:
        assert loaded.evaluate(point, 7).action == pool.evaluate(point, 5000).action


@given(st.lists(st.tuples(MAPS, st.integers(0, 5000)), min_size=1), st.integers(0, 6000), st.integers(0, 100))
def test_a_wait_ends_and_never_sleeps_through_an_expiry(
    maps: list[tuple[control.Map, int]], evaluated: int, spent: int
) -> None:
    pool = Pool(3600)
    for content, at in maps:
        pool.set_local(content, at)
    pool.evaluate(INSTALL, evaluated)
    now = evaluated + spent
    result = pool.next_deadline(now, D, POLL_S)
    assert now <= result.at <= now + max(POLL_S, 3600 / 2 + 5000)
    assert not any(evaluated < entry.expires_at < result.at for entry in pool.entries() if result.at > now)
