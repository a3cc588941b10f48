"""From summed layers to networks: what a layer pays alone that it does not pay in company.

A lone layer reads its input in the caller's layout and writes its output back to it, starts and ends
a session, and finds its input in no cache. Inside a network most of that is saved, in proportion to the
activations at its borders. So the correction is linear in a few physical quantities of the layers,

    network_ms = a · sum(layer_ms) + b · layers + c · input MB + d · output MB + ...

fitted on networks measured end to end in the same rounds as the layers, by ridge regression on relative
errors. Where layers are timed with the ends they have within a network (int8), nothing is saved at borders
but the call itself: only the first two are fitted, since others would describe the networks at hand and
mislead about the next ones. The correction is linear in each layer, so a network's latency can still be told
layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nas.quantities import signed
from search_spaces.blocks import Head, Stem
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey, operators
from search_spaces.ops import Add, Conv, Linear, SqueezeExcitation, convolutions

_MEGABYTE = 4 / 1e6  # fp32 values
FEATURES = (
    "latency_ms",
    "layers",
    "input_mb",
    "output_mb",
    "residual_mb",
    "se_mb",
    "hswish_mb",
    "weights_mb",
    "se_layers",
    "expanded_mb",  # maps within a layer
)
# With fewer networks than this only latency_ms and layers are fitted.
_NETWORKS_FOR_ALL_FEATURES = 30
_RIDGE = 0.01
_LARGEST = 1e12


@lru_cache(maxsize=200_000)
def layer_features(key: LayerKey) -> tuple[float, ...]:
    """Everything in :data:`FEATURES` but the latency, for one layer; megabytes are of fp32."""
    made_of = operators(key)
    products = list(convolutions(made_of))
    maps = [each for each in made_of if isinstance(each, Conv) and not isinstance(each, Linear)]
    # The image enters network and lone stem alike, and logits leave them alike.
    image, logits = isinstance(key.part, Stem), isinstance(key.part, Head)
    borders = (0 if image else made_of[0].in_values, 0 if logits else made_of[-1].out_values)
    gates = [each for each in made_of if isinstance(each, SqueezeExcitation)]
    values = (
        *borders,
        sum(each.in_values for each in made_of if isinstance(each, Add)),
        sum(each.in_values for each in gates),
        sum(each.out_values for each in products if each.activation in ("hswish", "swish")),
        sum(each.weights for each in products),
    )
    within = sum(each.out_values for each in (maps if logits else maps[:-1]))
    return (1.0, *(each * _MEGABYTE for each in values), float(len(gates)), within * _MEGABYTE)


def network_features(keys: Sequence[LayerKey], layers_ms: Sequence[float]) -> NDArray[np.float64]:
    """The quantities of :data:`FEATURES`, summed over the layers of one network: (features,)."""
    borders = np.array([layer_features(key) for key in keys]).sum(axis=0)
    return np.concatenate([[sum(layers_ms)], borders])


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of predictions against measurements; shares and errors as fractions, not percent.

    Attributes:
        networks: number of networks.
        mape: mean absolute relative error.
        bias: mean relative error; positive means predicted too slow.
        within_5_percent: share of networks predicted within 5 %.
        within_10_percent: share of networks predicted within 10 %.
        worst: largest absolute relative error.
        kendall_tau: rank correlation (Kendall's tau-b).
        spearman_rho: rank correlation (Spearman's rho).
    """

    networks: int
    mape: float
    bias: float
    within_5_percent: float
    within_10_percent: float
    worst: float
    kendall_tau: float
    spearman_rho: float

    @classmethod
    def of(cls, predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> ErrorSummary:
        """Compare two vectors of latencies, (networks,) each."""
        from scipy.stats import kendalltau, spearmanr

        errors = predicted_ms / measured_ms - 1
        size = np.abs(errors)
        return cls(
            networks=len(errors),
            mape=float(size.mean()),
            bias=float(errors.mean()),
            within_5_percent=float((size <= 0.05).mean()),
            within_10_percent=float((size <= 0.10).mean()),
            worst=float(size.max()),
            # Undefined where all predictions are equal: they order nothing.
            kendall_tau=float(np.nan_to_num(kendalltau(predicted_ms, measured_ms).statistic)),
            spearman_rho=float(np.nan_to_num(spearmanr(predicted_ms, measured_ms).statistic)),
        )

    def __str__(self) -> str:
        return (
            f"error {self.mape:.1%} (bias {self.bias:+.1%}, worst {self.worst:.1%}), "
            f"{self.within_5_percent:.0%} within 5 %, {self.within_10_percent:.0%} within 10 %, "
            f"Kendall tau {self.kendall_tau:.3f}"
        )


# Fields of :class:`ErrorSummary`, as cards and pages call them.
ERROR_ROWS = {
    "networks": "networks",
    "mape": "mean error",
    "bias": "bias",
    "within_5_percent": "within 5 %",
    "within_10_percent": "within 10 %",
    "worst": "worst",
    "kendall_tau": "Kendall tau",
    "spearman_rho": "Spearman rho",
}
_PERCENTAGES = ("mape", "bias", "within_5_percent", "within_10_percent", "worst")


def error_text(name: str, value: object) -> str:
    """One of the errors of latencies, by its name in :data:`ERROR_ROWS`."""
    if not isinstance(value, int | float):
        return "–"
    if name in _PERCENTAGES:
        return f"{signed(100 * value, 1) if name == 'bias' else f'{100 * value:.1f}'} %"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted correction.

    Attributes:
        coefficients: one per name in :data:`FEATURES`.
        left_out: error on the networks it was fitted on, each predicted from the others.
        uncorrected: error of the plain sums on the same networks.
    """

    coefficients: tuple[float, ...]
    left_out: ErrorSummary
    uncorrected: ErrorSummary

    @classmethod
    def fit(
        cls, features: NDArray[np.float64], measured_ms: NDArray[np.float64], borders: bool = True
    ) -> Calibration:
        """Fit on networks measured end to end.

        Args:
            features: (networks, len(FEATURES)) of :func:`network_features`.
            measured_ms: (networks,) end-to-end latency.
            borders: whether layers pay for their borders when they are timed alone.

        Raises:
            ValueError: with fewer than four networks.
        """
        networks = len(measured_ms)
        if networks < 4:
            raise ValueError(f"a calibration needs at least 4 networks, not {networks}")
        used = len(FEATURES) if borders and networks >= _NETWORKS_FOR_ALL_FEATURES else 2
        # Dividing by the measurement makes residuals relative: a small network counts like a large one.
        design = features[:, :used] / measured_ms[:, None]
        scale = np.sqrt((design**2).mean(axis=0))
        scale[scale == 0] = 1
        design = design / scale
        # The sum itself is not shrunk towards nothing, the corrections are.
        penalty = np.diag([0.0] + [_RIDGE] * (used - 1))
        solve = np.linalg.solve(design.T @ design + penalty, design.T)
        coefficients = np.zeros(len(FEATURES))
        coefficients[:used] = solve.sum(axis=1) / scale
        # Leave-one-out residuals of a ridge regression, in closed form.
        fitted = design @ solve
        residuals = (1 - fitted.sum(axis=1)) / (1 - np.diag(fitted))
        return cls(
            coefficients=tuple(float(each) for each in coefficients),
            left_out=ErrorSummary.of(measured_ms * (1 - residuals), measured_ms),
            uncorrected=ErrorSummary.of(features[:, 0], measured_ms),
        )

    def layer_ms(self, key: LayerKey, layer_ms: float) -> float:
        """A layer's share of the calibrated latency of any network that contains it."""
        first, *rest = self.coefficients
        return first * layer_ms + sum(a * b for a, b in zip(rest, layer_features(key), strict=True))

    def to_dict(self) -> dict[str, object]:
        """Plain types; the inverse of :meth:`from_dict`."""
        return {
            "features": dict(zip(FEATURES, self.coefficients, strict=True)),
            "left_out": asdict(self.left_out),
            "uncorrected": asdict(self.uncorrected),
        }

    @classmethod
    def from_dict(cls, data: object, gate: Gate) -> Calibration:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: of the gate's kind, if a field is missing or no finite number.
        """
        data = gate.fields("calibration", data, ("features", "left_out", "uncorrected"))
        features = gate.fields("features", data["features"], FEATURES)
        return cls(
            coefficients=tuple(gate.number(name, features[name], -_LARGEST, _LARGEST) for name in FEATURES),
            left_out=gate.record("left_out", ErrorSummary, data["left_out"]),
            uncorrected=gate.record("uncorrected", ErrorSummary, data["uncorrected"]),
        )
