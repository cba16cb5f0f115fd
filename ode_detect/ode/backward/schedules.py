"""The binomial schedule: how to reverse many steps from few kept states with the fewest steps taken again.

A chain of steps is reversed from its last to its first. Reversing a step needs the state before it. At most a given
number of states is kept at any time, the first among them, besides the one that is being advanced.

Source: Griewank and Walther 2000, "Algorithm 799: revolve", section 2.
"""

from __future__ import annotations

from math import comb


def fewest_steps(length: int, states: int) -> int:
    """Return the number of steps to take, besides those that are reversed, so that ``length`` steps can be reversed.

    It is r * length - C(states + r, states + 1), with r the smallest number for which length <= C(states + r, states).

    Args:
        length: number of steps to reverse, >= 1.
        states: number of states that may be kept, >= 1, the first among them.
    """
    r = _repetitions(length, states)
    return r * length - comb(states + r, states + 1)


def next_kept(length: int, states: int) -> int:
    """Return how many of ``length`` steps to take from a kept state until the next state is kept.

    Args:
        length: number of steps to reverse, >= 2.
        states: number of states that may be kept, >= 1, the one to start from among them.

    Returns:
        A number in [1, length - 1] that leads to `fewest_steps`.
    """
    r = _repetitions(length, states)
    return max(1, comb(states + r - 2, states), length - comb(states + r - 1, states - 1))


def places_kept(start: int, end: int, states: int) -> list[int]:
    """Return the numbers of the states that are kept from ``start`` to the step that ends at ``end``, ``start`` first.

    Args:
        start: number of the state to start from.
        end: number of the state after the last step to reverse, > start.
        states: number of states that may be kept, >= 1.
    """
    places = [start]
    while end - places[-1] > 1 and len(places) < states:
        place = places[-1] + next_kept(end - places[-1], states - len(places) + 1)
        if end - place == 1:
            break  # The step from there is reversed next: its state need not be kept.
        places.append(place)
    return places


def evaluations_to_reverse(steps: int, states: int) -> int:
    """Return the steps taken in the backward pass of a solve of ``steps``, those that are differentiated included.

    What follows the solve is one more step to reverse, the last of the chain: the solve ends before its backward pass.
    """
    return fewest_steps(steps + 1, states)


def _repetitions(length: int, states: int) -> int:
    r = 0
    while comb(states + r, states) < length:
        r += 1
    return r
