"""A sparse Gaussian process over two training recipes, and the file it is shipped in.

The logarithm of the top-1 error of a network with features x is modelled as

    shared(x)                 networks of Accel-NASBench's short recipe
    shared(x) + published(x)  networks of the published MobileNet recipe

(a two-level multi-fidelity process: Kennedy & O'Hagan 2000, Biometrika 87(1)). ``shared`` has a
constant, a linear and a squared-exponential part over all features; ``published`` has the same three
over the network features alone, as it is known from few networks. Both are summarised by inducing
points (Titsias 2009, "Variational learning of inducing variables in sparse Gaussian processes"), so
that no network of the data is needed to predict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.accuracy.features import FEATURES, NETWORK_FEATURES
from nas.tensors import read_tensors, write_tensors
from search_spaces.errors import InputError
from search_spaces.gate import Gate

Floats = NDArray[np.float64]
Recipe = Literal["mobilenet", "accel_nasbench"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

FORMAT_VERSION = "1"
_JITTER = 1e-7
# How far the log error of an unknown recipe lies from the published one's, everywhere alike; the
# benchmark's short recipe is 0.2 away at MobileNetV2.
_OWN_RECIPE = 0.2
_NETWORK = slice(len(FEATURES) - len(NETWORK_FEATURES), None)


class ParametersError(InputError):
    """A parameters file that this version cannot use."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Logarithms of the scales of both processes; D features, of which G describe the whole network.

    Attributes:
        length: (D,) length scales of ``shared``.
        slope: (G,) standard deviations of the linear part of ``shared``.
        published_length: (G,) length scales of ``published``.
        published_slope: (G,) standard deviations of the linear part of ``published``.
        amplitude: (2,) standard deviations of the squared-exponential parts, shared and published.
        constant: (2,) standard deviations of the constants, shared and published.
        noise: (2,) standard deviations of the observations, in the order of :data:`RECIPES`.
    """

    length: Tensor
    slope: Tensor
    published_length: Tensor
    published_slope: Tensor
    amplitude: Tensor
    constant: Tensor
    noise: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def shared(self, left: Tensor, right: Tensor) -> Tensor:
        """Covariance of ``shared`` between (N, D) and (M, D) features, (N, M)."""
        smooth = _squared_exponential(left, right, self.length, self.amplitude[0])
        left, right = left[:, _NETWORK], right[:, _NETWORK]
        return _constant_and_linear(smooth, left, right, self.constant[0], self.slope)

    def published(self, left: Tensor, right: Tensor) -> Tensor:
        """Covariance of ``published`` between (N, D) and (M, D) features, (N, M)."""
        left, right = left[:, _NETWORK], right[:, _NETWORK]
        smooth = _squared_exponential(left, right, self.published_length, self.amplitude[1])
        return _constant_and_linear(smooth, left, right, self.constant[1], self.published_slope)

    def variance(self, inputs: Tensor, recipe: Recipe) -> Tensor:
        """Prior variance of (N, D) features, (N,)."""
        network = inputs[:, _NETWORK] ** 2
        shared = torch.exp(2 * self.constant[0]) + torch.exp(2 * self.amplitude[0])
        result = shared + network @ torch.exp(2 * self.slope)
        if recipe == "mobilenet":
            extra = torch.exp(2 * self.constant[1]) + torch.exp(2 * self.amplitude[1])
            result = result + extra + network @ torch.exp(2 * self.published_slope)
        return result


def _squared_exponential(left: Tensor, right: Tensor, log_length: Tensor, log_amplitude: Tensor) -> Tensor:
    # Exponent 2 log_amplitude - |left - right|² / 2, as one product of augmented matrices.
    left, right = left / torch.exp(log_length), right / torch.exp(log_length)
    left_part = 2 * log_amplitude - 0.5 * (left**2).sum(1, keepdim=True)
    right_part = -0.5 * (right**2).sum(1, keepdim=True)
    augmented = torch.cat([left, left_part, torch.ones_like(left_part)], dim=1)
    return (augmented @ torch.cat([right, torch.ones_like(right_part), right_part], dim=1).T).exp_()


def _constant_and_linear(
    smooth: Tensor, left: Tensor, right: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    left = torch.cat([left * torch.exp(2 * slope), torch.exp(2 * constant).expand(len(left), 1)], dim=1)
    right = torch.cat([right, torch.ones_like(right[:, :1])], dim=1)
    return torch.addmm(smooth, left, right.T)


@dataclass(frozen=True, slots=True)
class Inducing:
    """Points at which the processes are summarised.

    Attributes:
        shared: (M, D) features, for ``shared``.
        published: (P, D) features, for both processes.
    """

    shared: Tensor
    published: Tensor

    def covariance(self, hyper: Hyperparameters) -> Tensor:
        """Of the M + P values of ``shared`` and the P of ``published``, (M + 2P, M + 2P)."""
        points = torch.cat([self.shared, self.published])
        blocks: Tensor = torch.block_diag(  # type: ignore[no-untyped-call]
            hyper.shared(points, points), hyper.published(self.published, self.published)
        )
        return blocks + _JITTER * torch.eye(len(blocks), dtype=blocks.dtype)

    def cross(self, hyper: Hyperparameters, inputs: Tensor, recipe: Recipe) -> Tensor:
        """Covariance with networks of one recipe, (N, D) -> (N, M + 2P)."""
        shared = hyper.shared(inputs, torch.cat([self.shared, self.published]))
        if recipe == "mobilenet":
            return torch.cat([shared, hyper.published(inputs, self.published)], dim=1)
        return torch.cat([shared, shared.new_zeros(len(inputs), len(self.published))], dim=1)


@dataclass(frozen=True, slots=True)
class Posterior:
    """The fitted process: all that is shipped.

    Attributes:
        hyper: scales.
        inducing: inducing points, in standardised features.
        feature_offset: (D,) subtracted from features.
        feature_scale: (D,) features are divided by it.
        offset: () log error around which the process varies.
        weights: (M + 2P,) the posterior mean is cross-covariance times these.
        root: (R, M + 2P) cross-covariance times its transpose is the root of the variance that the
            data explain.
        calibration: (2,) factors on standard deviations, from networks left out, by recipe.
    """

    hyper: Hyperparameters
    inducing: Inducing
    feature_offset: Tensor
    feature_scale: Tensor
    offset: Tensor
    weights: Tensor
    root: Tensor
    calibration: Tensor

    def predict(self, features: Floats, recipe: Recipe = "mobilenet") -> tuple[Floats, Floats]:
        """Top-1 of one training run and its standard deviation, in percentage points.

        Args:
            features: (N, D) from :func:`nas.accuracy.features.features`.
            recipe: how the network is trained.
        """
        return Evaluator(self, recipe)(features)

    def conditioned(self, features: Tensor, log_error: Tensor, recipes: Sequence[str]) -> Posterior:
        """The process after it has seen further networks: an exact update, without the first data.

        The networks become inducing points of their own, so that they tell as much about their
        surroundings as if they had been there from the beginning. Scales and calibration stay.

        Args:
            features: (E, D) from :func:`nas.accuracy.features.features`.
            log_error: (E,) logarithm of 100 less top-1.
            recipes: E names. One that is not among :data:`RECIPES` stands for the published recipe plus
                an unknown offset, the same for all networks of that name: they tell differences.
        """
        inputs = (features - self.feature_offset) / self.feature_scale
        short = torch.tensor([recipe == "accel_nasbench" for recipe in recipes], dtype=torch.bool)
        numbers = torch.cat([torch.nonzero(short)[:, 0], torch.nonzero(~short)[:, 0]])
        inputs, log_error, recipes = inputs[numbers], log_error[numbers], [recipes[n] for n in numbers]
        count, few = len(inputs), int(short.sum())
        inducing = Inducing(
            torch.cat([self.inducing.shared, inputs[:few]]),
            torch.cat([self.inducing.published, inputs[few:]]),
        )
        # Columns of the cross-covariance: the old ones, and those of the networks under their recipe.
        first, second = len(self.inducing.shared), len(self.inducing.published)
        width = len(inducing.shared) + 2 * len(inducing.published)
        published = len(inducing.shared)  # where the two blocks of `published` points begin
        both = published + len(inducing.published)
        old = torch.cat([torch.arange(first), published + torch.arange(second), both + torch.arange(second)])
        own = torch.zeros(width, count, dtype=inputs.dtype)
        own[first + torch.arange(few), torch.arange(few)] = 1
        for block in (published, both):
            own[block + second + torch.arange(count - few), torch.arange(few, count)] = 1
        cross = torch.cat(
            [
                inducing.cross(self.hyper, inputs[:few], "accel_nasbench"),
                inducing.cross(self.hyper, inputs[few:], "mobilenet"),
            ]
        )
        weights = inputs.new_zeros(width)
        weights[old] = self.weights
        root = inputs.new_zeros(len(self.root), width)
        root[:, old] = self.root
        # Covariance with the networks, as the first data left it, is cross-covariance times `basis`.
        basis = own - root.T @ (root @ cross.T)
        names = np.array(recipes)
        noise = torch.exp(2 * self.hyper.noise)
        observed = cross @ basis + torch.diag(
            torch.where(torch.arange(count) < few, noise[RECIPES.index("accel_nasbench")], noise[0])
        )
        for name in set(recipes) - set(RECIPES):
            same = torch.from_numpy(names == name).to(inputs.dtype)
            observed = observed + _OWN_RECIPE**2 * same[:, None] * same
        factor = torch.linalg.cholesky(observed)
        residual = (log_error - self.offset - cross @ weights)[:, None]
        return replace(
            self,
            inducing=inducing,
            weights=weights + basis @ torch.cholesky_solve(residual, factor)[:, 0],
            root=torch.cat([root, torch.linalg.solve_triangular(factor, basis.T, upper=False)]),
        )

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write the parameters with notes on where they come from."""
        tensors = {f"hyper.{name}": value for name, value in self.hyper.tensors().items()}
        tensors |= {"inducing.shared": self.inducing.shared, "inducing.published": self.inducing.published}
        tensors |= {name: getattr(self, name) for name in _PLAIN_TENSORS}
        header = {"format": FORMAT_VERSION, "features": json.dumps(FEATURES), **notes}
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> Posterior:
        """Read what :meth:`save` wrote.

        Raises:
            ParametersError: if the file cannot be read, or is of another version.
        """
        command = "run: python -m nas.predictor fit"
        tensors, header = read_tensors(path, Gate(f"the predictor {path}", ParametersError, command))
        if header.get("format") != FORMAT_VERSION:
            raise ParametersError(
                f"{path} has format {header.get('format', 'none')}, this version reads {FORMAT_VERSION}; "
                f"{command}"
            )
        if header.get("features") != json.dumps(FEATURES):
            raise ParametersError(
                f"{path} was fitted on other features than this version computes; {command}"
            )
        try:
            return cls(
                Hyperparameters(
                    **{each.name: tensors[f"hyper.{each.name}"] for each in fields(Hyperparameters)}
                ),
                Inducing(tensors["inducing.shared"], tensors["inducing.published"]),
                **{name: tensors[name] for name in _PLAIN_TENSORS},
            )
        except KeyError as error:
            raise ParametersError(f"{path} lacks {error}; {command}") from None


class Evaluator:
    """The predictions of a process for one recipe, prepared once and then fast for any number of networks.

    The squared-exponential parts are evaluated in single precision. The constant and linear parts of
    the mean, far larger and nearly cancelled by the weights, are summed up beforehand in double precision:
    predictions differ from double precision throughout by less than 0.002 points.

    Args:
        posterior: the process.
        recipe: how the networks are trained.
    """

    @torch.no_grad()
    def __init__(self, posterior: Posterior, recipe: Recipe = "mobilenet") -> None:
        hyper, points = posterior.hyper, posterior.inducing
        parts = [(torch.cat([points.shared, points.published]), 0, hyper.length, hyper.slope)]
        if recipe == "mobilenet":
            # No squared difference of other features counts.
            length = torch.full_like(hyper.length, torch.inf)
            length[_NETWORK] = hyper.published_length
            parts.append((points.published, 1, length, hyper.published_slope))
        exponents, squares, linear = [], [], []
        for part, level, log_length, slope in parts:
            precision = torch.exp(-2 * log_length)
            scaled = part * precision
            constant = 2 * hyper.amplitude[level] - 0.5 * (part * scaled).sum(1)
            exponents.append(torch.cat([scaled, constant[:, None]], dim=1))
            squares.append(-0.5 * precision)
            linear.append(
                torch.cat(
                    [
                        part[:, _NETWORK] * torch.exp(2 * slope),
                        torch.exp(2 * hyper.constant[level]).expand(len(part), 1),
                    ],
                    dim=1,
                )
            )
        used = sum(len(part) for part, *_ in parts)
        weights, root = posterior.weights[:used], posterior.root[:, :used]
        self._offset, self._scale = posterior.feature_offset.numpy(), posterior.feature_scale.numpy()
        self._squares = torch.stack(squares, 1).numpy().astype(np.float32)  # (D, levels)
        self._exponents = [each.T.numpy().astype(np.float32) for each in exponents]  # (D + 1, points)
        self._columns = used
        self._linear_mean = (weights @ torch.cat(linear)).numpy()
        self._weights = weights.numpy().astype(np.float32)
        # (columns + G + 1, R): what squared-exponential, linear and constant parts are multiplied by.
        self._root = torch.cat([root, root @ torch.cat(linear)], dim=1).T.numpy().astype(np.float32)
        number = RECIPES.index(recipe)
        levels = slice(0, len(parts))
        self._prior = float(
            (torch.exp(2 * hyper.constant[levels]) + torch.exp(2 * hyper.amplitude[levels])).sum()
        )
        slopes = torch.exp(2 * hyper.slope)
        if recipe == "mobilenet":
            slopes = slopes + torch.exp(2 * hyper.published_slope)
        self._slopes = slopes.numpy()
        self._noise = float(torch.exp(2 * hyper.noise[number]))
        self._mean = float(posterior.offset)
        self._calibration = float(posterior.calibration[number])

    def __call__(self, features: Floats) -> tuple[Floats, Floats]:
        """Top-1 of one training run and its standard deviation, in percentage points, (N,) each.

        Args:
            features: (N, D) from :func:`nas.accuracy.features.features`.
        """
        inputs = (features - self._offset) / self._scale
        network = inputs[:, _NETWORK]
        single = inputs.astype(np.float32)
        squared = (single * single) @ self._squares
        # Squared-exponential parts of the cross-covariance, then what the linear ones are made of.
        cross = np.empty((len(inputs), len(self._root)), np.float32)
        begin = 0
        for level, points in enumerate(self._exponents):
            end = begin + points.shape[1]
            part = cross[:, begin:end]
            np.matmul(single, points[:-1], out=part)
            part += points[-1]
            part += squared[:, level, None]
            begin = end
        smooth = cross[:, :begin]
        np.exp(smooth, out=smooth)
        cross[:, begin:-1] = network
        cross[:, -1] = 1
        projected = cross @ self._root
        explained = np.einsum("nr,nr->n", projected, projected)
        log_error = self._mean + network @ self._linear_mean[:-1] + self._linear_mean[-1]
        log_error += smooth @ self._weights
        variance = self._prior + (network * network) @ self._slopes - explained
        error = np.exp(log_error)
        deviation = error * np.sqrt(np.maximum(variance, 0) + self._noise) * self._calibration
        return 100 - error, deviation


_PLAIN_TENSORS = tuple(each.name for each in fields(Posterior) if each.name not in ("hyper", "inducing"))
