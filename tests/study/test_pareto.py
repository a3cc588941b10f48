import numpy as np
import pytest

from nas.study.pareto import Points, front, hypervolume


def dominates(one: Points, other: Points) -> bool:
    return bool(np.all(one <= other) and np.any(one < other))


def test_front_is_what_nothing_dominates() -> None:
    points = np.random.default_rng(0).integers(0, 8, (200, 3)).astype(float)
    kept = front(points)
    brute = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert {tuple(points[i]) for i in kept} == {tuple(points[i]) for i in brute}
    assert len({tuple(points[i]) for i in kept}) == len(kept)


def test_hypervolume_of_boxes_counted_by_hand() -> None:
    assert hypervolume(np.array([[2.0], [3.0]]), np.array([5.0])) == 3
    # Two boxes of 3 and 4 that share 2 (a third point is dominated, a fourth beyond the reference).
    flat = np.array([[1.0, 3.0], [2.0, 2.0], [2.5, 3.5], [0.0, 4.0]])
    assert hypervolume(flat, np.array([4.0, 4.0])) == 3 + 4 - 2
    solid = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert hypervolume(solid, np.array([2.0, 2.0, 2.0])) == 4 + 2 - 1
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolume_agrees_with_counted_cells(objectives: int) -> None:
    points = np.random.default_rng(1).integers(0, 10, (12, objectives)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(10)] * objectives), -1).reshape(-1, objectives)
    dominated = sum(any(np.all(p <= cell) for p in points) for cell in cells)
    assert hypervolume(points, np.full(objectives, 10.0)) == dominated


def test_four_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="three objectives"):
        hypervolume(np.zeros((1, 4)), np.ones(4))


def test_two_objectives_take_the_short_way_to_the_same_front() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        points = generator.integers(0, 12, (60, 2)).astype(float)
        wanted = [
            index
            for index, point in enumerate(points)
            if not any(
                np.all(other <= point) and (np.any(other < point) or before < index)
                for before, other in enumerate(points)
                if before != index
            )
        ]
        assert sorted(front(points)) == wanted
