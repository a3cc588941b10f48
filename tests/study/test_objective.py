import pytest

from nas.accuracy.source import Accuracy
from nas.cost import Cost
from nas.study.objective import Budget, Evaluation, MnasNet, Pareto, directions, names, values

EVALUATION = Evaluation(Accuracy(70.0, "predicted", deviation=0.5), 20.0, "measured", Cost(300, 5_000_000))


def test_values_directions_and_names_agree() -> None:
    assert values(Pareto(), EVALUATION) == (70, 20)
    assert values(Pareto(third="macs"), EVALUATION) == (70, 20, 300)
    assert values(Pareto(third="model_size_mb"), EVALUATION) == (70, 20, 20)
    assert values(Pareto(third="model_size_mb", bytes_per_value=1), EVALUATION) == (70, 20, 5)
    assert values(Budget(), EVALUATION) == (70,)
    for objective in (Pareto(), Pareto(third="parameters"), Budget(), MnasNet(10.0)):
        assert len(values(objective, EVALUATION)) == len(names(objective)) == len(directions(objective))
        assert directions(objective)[0] == "maximize"


def test_mnasnet_reward_is_the_papers() -> None:
    # Tan et al. 2019: twice the latency at 5 % more accuracy is worth about the same at w = -0.07.
    twice = Evaluation(Accuracy(70.0 * 1.05, "predicted"), 40.0, "measured", Cost(1, 1))
    objective = MnasNet(target_ms=20.0)
    assert values(objective, EVALUATION) == (70,)
    assert values(objective, twice)[0] == pytest.approx(70, rel=1e-3)
    with pytest.raises(ValueError, match="target_ms must be positive"):
        MnasNet(target_ms=0)


def test_caution_lowers_uncertain_accuracies_only() -> None:
    assert values(Pareto(caution=2), EVALUATION) == (69, 20)
    sure = Evaluation(Accuracy(70.0, "measured"), 20.0, "measured", Cost(1, 1))
    assert values(Pareto(caution=2), sure) == (70, 20)
