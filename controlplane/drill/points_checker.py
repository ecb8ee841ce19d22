"""The judge of points: what was acked against what is read back. It knows series, times, numbers and values, and
nothing of how they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from controlplane.drill.checker import EXAMPLES_MAX, Judgement


def judge_points(
    acked: Mapping[str, Set[int]],
    sent: Mapping[str, int],
    first_ms: Mapping[str, int],
    value_of: Callable[[str, int], int],
    read: Iterable[tuple[str, int, int, int]],
) -> Judgement:
    """Each acked point must be there once, at its time and with its value. `sent`: numbers below it were sent; a point
    without an ack may be there, once. `read`: (series, milliseconds, number, value). What was not sent so is corrupt.
    """
    seen: dict[str, set[int]] = {series: set() for series in sent}
    duplicated = corrupt = 0
    examples: list[str] = []
    for series, ms, number, value in read:
        if not 0 <= number < sent.get(series, 0):
            corrupt += 1
            examples.append(f"series {series}: point {number} was never sent")
        elif ms != first_ms[series] + number or value != value_of(series, number):
            corrupt += 1
            examples.append(f"series {series}: point {number} is at {ms} with {value}, and was not sent so")
        elif number in seen[series]:
            duplicated += 1
            examples.append(f"series {series}: point {number} is there again")
        else:
            seen[series].add(number)
    lost = 0
    for series, numbers in acked.items():
        missing = sorted(numbers - seen.get(series, set()))
        lost += len(missing)
        if missing:
            span = f"{missing[0]} to {missing[-1]}" if len(missing) > 1 else f"{missing[0]}"
            examples.append(f"series {series}: {len(missing)} acked points are not there, of {span}")
    unacked = sum(len(found - acked.get(series, set())) for series, found in seen.items())
    total = sum(len(numbers) for numbers in acked.values())
    return Judgement(total, lost, duplicated, 0, corrupt, unacked, tuple(examples[:EXAMPLES_MAX]))
