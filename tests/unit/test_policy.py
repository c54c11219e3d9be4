# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy by example: what readers should expect. tests/property says it for all histories."""

from __future__ import annotations

import pytest

from tierd.capacity import Limits, lone_capacity, room
from tierd.policy import (
    AheadOver,
    Allocated,
    ArenaAsked,
    ArenaOpened,
    ArenaReturned,
    ArenaWaitOver,
    Deny,
    Discard,
    Event,
    ExtentsChanged,
    Freed,
    Grant,
    Joined,
    Left,
    MakeAhead,
    RamSpare,
    RamWanted,
    Recall,
    RecallFailed,
    Refused,
    SpillAsked,
    State,
    VramSet,
    apply,
)


def after(state: State, *events: Event) -> State:
    for event in events:
        state, _ = apply(state, event)
    return state


def refusal(state: State, event: Event) -> str:
    with pytest.raises(Refused) as refused:
        apply(state, event)
    return refused.value.name


ONE = after(State(Limits(arenas=2, arena_slots=4, extents=10)), Joined(1), VramSet(1, 3))
"""A session with 3 VRAM slots, alone before 8 slots of T2 and 10 extents."""


def test_a_lone_session_may_allocate_all_but_the_transit_slots() -> None:
    assert lone_capacity(ONE.limits) == (6, 10)
    full = after(ONE, Allocated(1, 3 + 6 + 10))
    assert refusal(full, Allocated(1, 1)) == "ENOMEM"
    assert room(full.limits, full.sessions, 1) == 16
    assert after(full, Freed(1, 5), Allocated(1, 5)) == full


def test_the_refusal_says_how_much_room_there_is() -> None:
    with pytest.raises(Refused, match="20 chunks are wanted, the tiers have room for 19"):
        apply(ONE, Allocated(1, 20))


def test_vram_may_shrink_only_as_far_as_the_rest_has_room() -> None:
    full = after(ONE, Allocated(1, 18))
    assert after(full, VramSet(1, 2)).sessions[1].vram == 2
    assert refusal(full, VramSet(1, 1)) == "ENOMEM"
    assert after(full, VramSet(1, 9)).sessions[1].vram == 9


def test_without_t3_whole_arenas_count() -> None:
    two = after(State(Limits(2, 4, 0)), Joined(1), Joined(2), Allocated(1, 1))
    # Session 1 has one arena for a chunk and two transit slots; what is left of it is nobody else's.
    assert after(two, Allocated(2, 2)).sessions[2].overflow == 2
    assert refusal(two, Allocated(2, 3)) == "ENOMEM"


def test_no_arena_for_transit_no_overflow() -> None:
    two = after(State(Limits(1, 4, 100)), Joined(1), Joined(2), Allocated(1, 50))
    assert refusal(two, Allocated(2, 1)) == "ENOMEM"
    assert after(two, VramSet(2, 5), Allocated(2, 5)).sessions[2].committed == 5


def test_extents_are_kept_for_those_who_have_no_other_place() -> None:
    two = after(State(Limits(2, 4, 2)), Joined(1), Joined(2), Allocated(1, 4), Allocated(2, 2))
    # Two chunks of session 1 may need the extents: session 2 has room enough in its arena.
    assert refusal(two, SpillAsked(2)) == "ENOSPC"
    assert refusal(after(two, SpillAsked(1), SpillAsked(1)), SpillAsked(1)) == "ENOSPC"


def test_a_failing_device_takes_room_but_nothing_that_is_stored() -> None:
    full = after(ONE, Allocated(1, 19), SpillAsked(1), ExtentsChanged(9))
    assert refusal(full, Allocated(1, 1)) == "ENOMEM"
    assert refusal(full, VramSet(1, 2)) == "ENOMEM"
    assert after(full, Freed(1, 3), Allocated(1, 2)).sessions[1].committed == 18
    # What VRAM holds alone is still admitted.
    assert after(full, VramSet(1, 30), Allocated(1, 1)).sessions[1].committed == 20


def test_an_arena_is_recalled_from_whoever_has_most_above_its_share() -> None:
    state = after(State(Limits(4, 4, 100)), *(Joined(id) for id in (1, 2, 3)))
    state = after(state, ArenaAsked(1), ArenaAsked(1), ArenaAsked(1), ArenaAsked(2))
    assert state.free_arenas == 0
    # Session 1 has no use for what it has; session 3 has.
    state = after(state, Allocated(3, 2))
    state, actions = apply(state, ArenaAsked(3))
    assert actions == (Recall(1, 3),)
    state, actions = apply(state, ArenaReturned(1, 3))
    assert actions == (Grant(3, 5),)
    assert state.sessions[3].arenas == (5,)


def test_nobody_is_given_more_than_a_fair_share_at_anothers_cost() -> None:
    state = after(State(Limits(2, 4, 100)), Joined(1), Joined(2), Allocated(1, 50), Allocated(2, 50))
    state = after(state, ArenaAsked(1), ArenaAsked(2))
    assert refusal(state, ArenaAsked(1)) == "ENOSPC"


def test_who_does_not_give_back_keeps_it_and_the_asker_is_told() -> None:
    state = after(State(Limits(1, 4, 100)), Joined(1), Joined(2), ArenaAsked(1), Allocated(2, 5))
    state, actions = apply(state, ArenaAsked(2))
    assert actions == (Recall(1, 1),)
    state, actions = apply(state, RecallFailed(1, 1))
    assert actions == (Deny(2),)
    assert state.sessions[1].arenas == (1,)
    assert state.waiting == ()


def test_an_asker_who_gave_up_leaves_the_arena_to_the_next() -> None:
    state = after(State(Limits(1, 4, 100)), Joined(1), Joined(2), ArenaAsked(1), Allocated(2, 5))
    state = after(state, ArenaAsked(2), ArenaWaitOver(2))
    state, actions = apply(state, ArenaAsked(2))
    assert actions == ()  # no second recall
    _, actions = apply(state, ArenaReturned(1, 1))
    assert actions == (Grant(2, 2),)


def test_the_end_of_a_session_serves_those_who_wait() -> None:
    state = after(State(Limits(1, 4, 100)), Joined(1), Joined(2), ArenaAsked(1), Allocated(2, 5))
    state, actions = apply(after(state, ArenaAsked(2)), Left(1))
    assert actions == (Grant(2, 2),)
    assert set(state.sessions) == {2}


def test_a_place_in_the_queue_passes_to_whoever_needs_it_more() -> None:
    state = after(State(Limits(1, 2, 100)), Joined(1), Joined(2), Joined(3), ArenaAsked(1), Allocated(2, 5))
    state = after(state, ArenaAsked(2), Freed(2, 5), Allocated(3, 5))
    state, actions = apply(state, ArenaAsked(3))
    assert actions == (Deny(2),)
    assert state.waiting == (3,)


# While RAM is short

TWO = after(State(Limits(4, 4, 100)), *(Joined(id) for id in (1, 2)), *(Allocated(id, 12) for id in (1, 2)))
"""Two sessions that could use all four arenas and more; T3 has room for everything."""


def test_ram_that_is_wanted_comes_from_whoever_has_most_above_its_share() -> None:
    state = after(TWO, ArenaAsked(1), ArenaAsked(1), ArenaAsked(1), ArenaAsked(2))
    state, actions = apply(state, RamWanted(2))
    assert actions == (Recall(1, 3), Recall(1, 2))
    state, actions = apply(state, RamWanted(2))
    assert actions == ()  # they are on their way
    state, actions = apply(state, ArenaReturned(1, 3))
    assert (actions, state.free_arenas) == ((), -1)
    # One is back and one is still wanted: nothing new. Then one more is.
    assert apply(state, RamWanted(1))[1] == ()
    # Two of three are on their way or have to stay.
    assert apply(state, RamWanted(3))[1] == ()


def test_what_was_promised_keeps_its_ram() -> None:
    full = after(State(Limits(4, 4, 3)), Joined(1), Allocated(1, 12), *[ArenaAsked(1)] * 4)
    # 12 chunks and 2 slots to move them in, of which T3 takes 3: three arenas have to stay.
    state, actions = apply(full, RamWanted(4))
    assert actions == (Recall(1, 4),)
    assert (state.short, state.withheld) == (4, 1)
    with pytest.raises(Refused, match=r"2 chunks are wanted, .* room for 1 while the system is short of RAM"):
        apply(state, Allocated(1, 2))
    # What it frees it gives.
    state, actions = apply(state, Freed(1, 8))
    assert actions == (Recall(1, 3), Recall(1, 2))


def test_a_session_without_need_gives_everything() -> None:
    state = after(State(Limits(2, 4, 0)), Joined(1), ArenaAsked(1), ArenaAsked(1))
    assert apply(state, RamWanted(9))[1] == (Recall(1, 2), Recall(1, 1))


def test_who_does_not_give_is_passed_over_until_it_gives_or_is_asked_again() -> None:
    state = after(TWO, ArenaAsked(1), ArenaAsked(1), ArenaAsked(2), ArenaAsked(2))
    state, actions = apply(state, RamWanted(1))
    assert actions == (Recall(2, 4),)
    # Session 1 has no more than its share, but can do with one arena less.
    state, actions = apply(state, RecallFailed(2, 4))
    assert actions == (Recall(1, 2),)
    state, actions = apply(state, RecallFailed(1, 2))
    assert actions == ()
    assert apply(state, RamWanted(1))[1] == ()
    assert apply(state, RamWanted(1, again=True))[1] == (Recall(2, 4),)
    # It was only late.
    state, actions = apply(state, ArenaReturned(2, 4))
    assert (actions, state.free_arenas) == ((), 0)


def test_the_last_arena_is_only_taken_from_those_who_need_none() -> None:
    state = after(TWO, ArenaAsked(1), ArenaAsked(2))
    state, actions = apply(state, RamWanted(2))
    assert actions == ()
    assert (state.short, state.withheld, state.limits.arenas) == (4, 2, 2)


def test_nobody_waits_for_an_arena_that_goes_to_the_system() -> None:
    state = after(TWO, Joined(3), *[ArenaAsked(3)] * 4, ArenaAsked(1))
    assert state.waiting == (1,)
    state, actions = apply(state, RamWanted(1))
    # One more is recalled: the first is still session 1's.
    assert actions == (Recall(3, 3),)
    # What is promised to session 2 is an arena too, so one of the four has to go on being nobody's.
    state, actions = apply(state, RamWanted(3))
    assert (actions, state.limits.arenas) == ((Recall(3, 2),), 2)
    state, actions = apply(after(state, ArenaReturned(3, 4), ArenaReturned(3, 3)), ArenaReturned(3, 2))
    assert actions == (Grant(1, 5),)
    assert state.free_arenas == 0


def test_who_waits_is_told_when_what_was_to_come_does_not() -> None:
    state = after(TWO, Joined(3), *[ArenaAsked(3)] * 4, ArenaAsked(1), RamWanted(1))
    state, actions = apply(state, RecallFailed(3, 4))
    assert actions == (Deny(1),)
    state, actions = apply(state, ArenaReturned(3, 3))
    assert (actions, state.free_arenas) == ((), 0)


def test_when_ram_is_spare_arenas_come_back_as_far_as_it_reaches() -> None:
    state = after(TWO, ArenaAsked(1), ArenaAsked(1), ArenaAsked(2), RamWanted(1), ArenaReturned(1, 2))
    assert (state.held_arenas, state.limits.arenas) == (2, 2)
    assert refusal(state, ArenaAsked(1)) == "ENOSPC"
    assert after(state, RamSpare(0)).limits.arenas == 2
    assert after(state, RamSpare(1)).limits.arenas == 3
    state, actions = apply(after(state, RamSpare(9)), ArenaAsked(1))
    assert actions == (Grant(1, 4),)
    assert (state.limits, state.short, state.withheld) == (TWO.limits, 0, 0)


def test_an_arena_on_its_way_back_is_waited_for_if_ram_is_not_short_any_more() -> None:
    state = after(TWO, ArenaAsked(1), ArenaAsked(1), ArenaAsked(1), ArenaAsked(2), RamWanted(1))
    # It goes to the system.
    assert refusal(state, ArenaAsked(1)) == "ENOSPC"
    # Now it does not, but is the session's until it is closed.
    state = after(state, RamSpare(0))
    assert state.free_arenas == 0
    state, actions = apply(state, ArenaAsked(1))
    assert (actions, state.waiting) == ((), (1,))
    state, actions = apply(state, ArenaReturned(1, 3))
    assert actions == (Grant(1, 5),)


# Arenas made ahead

LOADER = after(State(Limits(arenas=8, arena_slots=4, extents=10)), Joined(1), VramSet(1, 3), Allocated(1, 4))


def test_the_next_arena_is_made_when_one_is_opened_and_goes_to_whoever_asks() -> None:
    state, (granted,) = apply(LOADER, ArenaAsked(1))
    state, actions = apply(state, ArenaOpened(1))
    assert (granted, actions) == (Grant(1, 1), (MakeAhead(2),))
    assert apply(state, ArenaOpened(1)) == (state, ())  # one at a time
    _, other = apply(after(state, Joined(2)), ArenaAsked(2))
    state, same = apply(state, ArenaAsked(1))
    assert (same, other) == ((Grant(1, 2),), (Grant(2, 2),))
    assert apply(after(state, ArenaOpened(1)), ArenaAsked(1))[1] == (Grant(1, 3),)


def test_none_is_made_for_who_has_more_than_it_may_soon_fill() -> None:
    # A chunk beyond VRAM: its second arena may be for what is yet to come, its third is.
    state = after(LOADER, ArenaAsked(1), ArenaAsked(1))
    assert apply(state, ArenaOpened(1))[1] == (MakeAhead(3),)
    state = after(state, ArenaAsked(1))
    assert apply(state, ArenaOpened(1)) == (state, ())
    assert apply(after(state, Allocated(1, 4)), ArenaOpened(1))[1] == (MakeAhead(4),)
    assert apply(after(state, VramSet(1, 4)), ArenaOpened(1))[1] == ()


def test_none_is_made_beyond_the_limit() -> None:
    state = after(LOADER, Allocated(1, 28), *[ArenaAsked(1)] * 7)
    assert apply(state, ArenaOpened(1))[1] == (MakeAhead(8),)
    full = after(state, ArenaOpened(1), ArenaAsked(1))
    assert apply(full, ArenaOpened(1)) == (full, ())


@pytest.mark.parametrize("event", [Left(1), Freed(1, 2), VramSet(1, 4), RamWanted(1)])
def test_what_is_made_ahead_of_a_request_goes_when_none_is_to_be_expected(event: Event) -> None:
    state, actions = apply(after(LOADER, ArenaAsked(1), ArenaOpened(1)), event)
    assert actions == (Discard(2),)
    assert apply(state, AheadOver(2)) == (state, ())


def test_what_nobody_wanted_is_not_granted() -> None:
    state = after(LOADER, ArenaAsked(1), ArenaOpened(1), AheadOver(2))
    assert apply(state, ArenaAsked(1))[1] == (Grant(1, 3),)


def test_what_has_been_granted_is_not_given_up() -> None:
    state = after(LOADER, ArenaAsked(1), ArenaOpened(1), ArenaAsked(1))
    assert apply(state, AheadOver(2)) == (state, ())


def test_when_ram_is_short_what_is_made_ahead_is_given_first() -> None:
    state = after(LOADER, Allocated(1, 8), ArenaAsked(1), ArenaAsked(1), ArenaOpened(1))
    assert apply(state, RamWanted(1))[1] == (Discard(3),)
    assert apply(state, RamWanted(2))[1] == (Recall(1, 2), Discard(3))
    short = after(state, RamWanted(1))
    assert short.limits.arenas == 2
    assert apply(short, ArenaOpened(1)) == (short, ())
