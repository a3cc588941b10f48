import pytest

from nas.cost import Cost
from nas.study.objective import Objective, budget, mnasnet, pareto

COST = Cost(300, 5_000_000)


def _values(objective: Objective, deviation: float | None = 0.5) -> tuple[float, ...]:
    return objective.values(70.0, deviation, 20.0, COST)


def test_values_directions_and_names_agree() -> None:
    assert _values(pareto()) == (70, 20)
    assert _values(pareto(third="macs")) == (70, 20, 300)
    assert _values(pareto(third="model_size_mb")) == (70, 20, 20)
    assert _values(pareto(third="model_size_mb", bytes_per_value=1)) == (70, 20, 5)
    assert _values(budget()) == (70,)
    for objective in (pareto(), pareto(third="parameters"), budget(), mnasnet(10.0)):
        assert len(_values(objective)) == len(objective.names) == len(objective.directions)
        assert objective.directions[0] == "maximize"


def test_mnasnet_reward_is_the_papers() -> None:
    # Tan et al. 2019: twice the latency at 5 % more accuracy is worth about the same at w = -0.07.
    objective = mnasnet(target_ms=20.0)
    assert _values(objective) == (70,)
    assert objective.values(70.0 * 1.05, None, 40.0, COST)[0] == pytest.approx(70, rel=1e-3)
    with pytest.raises(ValueError, match="target_ms must be positive"):
        mnasnet(target_ms=0)


def test_caution_lowers_uncertain_accuracies_only() -> None:
    assert _values(pareto(caution=2)) == (69, 20)
    assert _values(pareto(caution=2), deviation=None) == (70, 20)
