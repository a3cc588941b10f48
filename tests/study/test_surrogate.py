import numpy as np
import pytest

from nas.study.pareto import hypervolume
from nas.study.surrogate import GaussianProcess, expected_improvement, tuned_kernel

FRONT_UTILITIES = np.array([60.0, 65.0, 70.0])
CASES = {
    "no cost": (np.empty((3, 0)), np.empty(0), np.empty(0)),
    "one cost": (np.array([[10.0], [20.0], [30.0]]), np.array([40.0]), np.array([15.0])),
    "two costs": (np.array([[1.0, 6.0], [2.0, 5.0], [4.0, 4.0]]), np.array([5.0, 7.0]), np.array([1.5, 5.5])),
}


@pytest.mark.parametrize("case", CASES)
def test_expected_improvement_is_the_mean_gain_in_hypervolume(case: str) -> None:
    front_costs, bounds, costs = CASES[case]
    mean, deviation = 66.0, 3.0
    gain = expected_improvement(
        np.array([mean]), np.array([deviation]), costs[None], FRONT_UTILITIES, front_costs, bounds
    )
    # Nothing below the worst utility of the front counts, so that is the reference.
    reference = np.array([-FRONT_UTILITIES.min(), *bounds])
    front = np.column_stack([-FRONT_UTILITIES, front_costs])
    before = hypervolume(front, reference)
    drawn = np.random.default_rng(0).normal(mean, deviation, 4_000)
    gains = [hypervolume(np.vstack([front, [-top1, *costs]]), reference) - before for top1 in drawn]
    assert gain[0] == pytest.approx(np.mean(gains), rel=0.05)


def test_a_tuned_process_predicts_better_than_the_mean_and_knows_where_it_errs() -> None:
    generator = np.random.default_rng(1)
    features = generator.choice([-1.0, 0.0, 1.0], (200, 6)) / np.sqrt(6)
    target = 70 + 4 * features[:, 0] + 3 * features[:, 1] * features[:, 2] + np.sin(3 * features[:, 3])
    kernel = tuned_kernel(features[:120], target[:120], generator)
    process = GaussianProcess(features[:120], target[:120], kernel)
    mean, deviation = process.predict(features[120:])
    error = mean - target[120:]
    assert np.abs(error).mean() < 0.2 * np.abs(target[120:] - target[:120].mean()).mean()
    assert np.mean(np.abs(error) < 2 * deviation) > 0.8
    known, sure = process.predict(features[:5])
    assert known == pytest.approx(target[:5], abs=0.2)
    assert sure.max() < deviation.max()


def test_networks_that_are_all_alike_are_no_obstacle() -> None:
    """Accuracies may all be the same, and different networks may have the same features."""
    features, target = np.zeros((12, 3)), np.full(12, 70.0)
    process = GaussianProcess(features, target, tuned_kernel(features, target, np.random.default_rng(0)))
    mean, deviation = process.predict(features[:2])
    assert mean == pytest.approx(70.0)
    assert np.isfinite(deviation).all()
