from functools import cache

import pytest

from ode_detect.ode.backward.schedules import evaluations_to_reverse, fewest_steps, next_kept, places_kept


@cache
def fewest(length: int, states: int) -> int:
    """By trying all places for the next state that is kept."""
    if length == 1:
        return 0
    if states == 1:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, states - 1) + fewest(m, states) for m in range(1, length))


@pytest.mark.parametrize("states", range(1, 10))
def test_the_binomial_formula_against_trying_all(states: int) -> None:
    assert [fewest_steps(n, states) for n in range(1, 60)] == [fewest(n, states) for n in range(1, 60)]


@pytest.mark.parametrize("states", range(1, 10))
def test_the_next_state_is_kept_at_a_best_place(states: int) -> None:
    for length in range(2, 60):
        place = next_kept(length, states)
        assert 1 <= place < length
        if states == 1:
            assert place == length - 1
        else:
            after = fewest(length - place, states - 1) + fewest(place, states)
            assert place + after == fewest(length, states)


@pytest.mark.parametrize("steps", [1, 2, 5, 22, 64])
@pytest.mark.parametrize("states", [1, 2, 4, 8, 100])
def test_a_chain_is_reversed_with_the_fewest_steps(steps: int, states: int) -> None:
    """Play the schedule: a solve of all steps, then one step after the other from the last to the first."""
    kept, taken = places_kept(0, steps + 1, states), 0
    for last in reversed(range(steps)):
        place = kept[-1]
        assert place <= last
        kept += places_kept(place, last + 1, states - len(kept) + 1)[1:]
        assert len(kept) <= states
        assert kept == sorted(set(kept))
        taken += last - place + 1
        kept = [k for k in kept if k != last]
    assert taken == evaluations_to_reverse(steps, states)
    assert (taken == steps) == (states >= steps)
    assert kept == []


def test_known_numbers() -> None:
    """Griewank and Walther: up to C(s + r, s) steps from s states with no step taken more than r times."""
    assert fewest_steps(10, 3) == 15
    assert places_kept(0, 23, 4) == [0, 5, 13, 19]
    assert evaluations_to_reverse(22, 4) == 48
    assert evaluations_to_reverse(22, 22) == 22
    assert evaluations_to_reverse(22, 1) == 22 * 23 // 2


def test_long_chains_are_planned_at_once() -> None:
    assert evaluations_to_reverse(100_000, 20) < 6 * 100_000
    assert len(places_kept(0, 100_000, 20)) == 20
