"""Dominance, fronts and hypervolume. Everything is minimised: negate what is to be maximised.

points = np.array([[-top1, latency_ms], ...])
best = front(points)                                  # indices, none dominates another
volume = hypervolume(points, reference=np.array([0.0, budget_ms]))
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
# With three objectives the hypervolume over time is computed this often.
_VOLUMES = 50


def front(points: Points) -> NDArray[np.intp]:
    """Indices of the points (n, objectives) that no other dominates, in the order of the first objective.

    Of equal points only the first is kept.
    """
    # In lexicographic order a point can only be dominated by one before it.
    order = np.lexsort(points.T[::-1])
    if points.shape[1] == 2:
        second = points[order, 1]
        # Something before it is at least as good in both, unless it is better than all of them in the second.
        lowest_before = np.minimum.accumulate(np.concatenate([[np.inf], second[:-1]]))
        best: NDArray[np.intp] = order[second < lowest_before]
        return best
    kept: list[int] = []
    found = np.empty_like(points)
    for index in order:
        if not np.any(np.all(found[: len(kept)] <= points[index], axis=1)):
            found[len(kept)] = points[index]
            kept.append(int(index))
    return np.array(kept, dtype=np.intp)


def hypervolume(points: Points, reference: Points) -> float:
    """Volume dominated by ``points`` (n, objectives) and bounded by ``reference`` (objectives,).

    Exact, for one to three objectives. Points beyond the reference count nothing.

    Raises:
        ValueError: if there are more than three objectives.
    """
    objectives = len(reference)
    if objectives > 3:
        raise ValueError(f"hypervolume: at most three objectives, not {objectives}")
    points = points[np.all(points < reference, axis=1)]
    if not len(points):
        return 0.0
    if objectives == 1:
        return float(reference[0] - points.min())
    if objectives == 2:
        return _area(points, reference)
    # Slices along the last objective: between two consecutive heights the area stays the same.
    points = points[np.argsort(points[:, 2], kind="stable")]
    heights = np.append(points[:, 2], reference[2])
    volume = 0.0
    for count in range(1, len(points) + 1):
        thickness = heights[count] - heights[count - 1]
        if thickness > 0:
            volume += thickness * _area(points[:count, :2], reference[:2])
    return volume


def box_bounds(costs: Points, reference_costs: Points, budget_ms: float) -> Points:
    """Where the box ends in which a front is judged (costs,): the budget, else the costliest reference.

    Args:
        costs: (n, costs) of the front, latency first, which decide where there are no references.
        reference_costs: (references, costs).
        budget_ms: of latency, infinite without one.
    """
    found: Points = (reference_costs if len(reference_costs) else costs).max(axis=0)
    if np.isfinite(budget_ms):
        found[0] = budget_ms
    return found


def dominated_share(losses: Points, bounds: Points) -> float:
    """Share, 0 to 1, of the box between 0 and 100 % and between 0 and the bounds that networks dominate.

    Args:
        losses: (n, 1 + costs) negative percent, then costs.
        bounds: (costs,); a network on the bound still counts.
    """
    bounds = np.nextafter(bounds, np.inf)
    return hypervolume(losses, np.array([0.0, *bounds])) / (100.0 * float(np.prod(bounds)))


def dominated_share_over_time(losses: Points, bounds: Points) -> list[tuple[int, float]]:
    """The growth of :func:`dominated_share`: (index of a point, share of all up to it) at each change.

    The last index is always among them; with three objectives, evenly spread indices are.
    """
    if losses.shape[1] > 2:
        numbers = np.linspace(1, len(losses), min(len(losses), _VOLUMES)).round().astype(int)
        return [
            (number - 1, dominated_share(losses[:number][front(losses[:number])], bounds))
            for number in numbers
        ]
    bound = float(bounds[0])
    # The front so far, by cost and by accuracy; each point changes it only where it enters.
    costs: list[float] = []
    accuracies: list[float] = []
    area = 0.0
    steps: list[tuple[int, float]] = []
    for index, (loss, cost) in enumerate(losses.tolist()):
        top1 = max(0.0, -loss)
        first = bisect.bisect_right(costs, cost)
        before = accuracies[first - 1] if first else 0.0
        if cost > bound or top1 <= before:
            continue
        start, height, last = cost, before, first
        while last < len(costs) and accuracies[last] <= top1:
            area += (costs[last] - start) * (top1 - height)
            start, height = costs[last], accuracies[last]
            last += 1
        end = costs[last] if last < len(costs) else bound
        area += (end - start) * (top1 - height)
        # Of equally cheap points the more accurate one stays.
        first -= first > 0 and costs[first - 1] == cost
        costs[first:last] = [cost]
        accuracies[first:last] = [top1]
        steps.append((index, area / (100 * bound)))
    if steps and steps[-1][0] != len(losses) - 1:
        steps.append((len(losses) - 1, steps[-1][1]))
    return steps


def _area(points: Points, reference: Points) -> float:
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    # Each step of the staircase reaches as far down as the best point at or before it.
    lowest = np.minimum.accumulate(points[:, 1])
    widths = np.diff(np.append(points[:, 0], reference[0]))
    return float(np.sum(widths * (reference[1] - lowest)))
