"""A sparse Gaussian process over all training recipes, and the file it is shipped in.

The logarithm of the top-1 error of a network with features x, trained by recipe r, is modelled as

    shared(x) + offset_r + slopes_r(x) + offset_g + slopes_g(x) + own_r(x) + noise

``shared`` is one function for all recipes: a constant, a linear part over all features, a
squared-exponential part over all of them, and one over the whole network's alone. Offset and slopes are
random effects of a recipe, narrow for recipes like the default target and wide for others, so that a
recipe's rows tell differences between networks whatever their level; recipes of one author share those of
their group g as well. ``own`` is a smooth function of a benchmark's or a supernet's, whose cheap scores are
a low fidelity of their own (Kennedy & O'Hagan 2000, Biometrika 87(1)). The smooth functions are summarised by
inducing points (Titsias 2009, "Variational learning of inducing variables in sparse Gaussian processes"), so
that no network of the data is needed to predict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nas.accuracy.features import FEATURES, NETWORK_FEATURES, Floats
from nas.accuracy.recipes import BENCHMARKS, KINDS, Kind, Recipe, with_groups
from nas.tensors import read_tensors, write_tensors
from search_spaces.errors import InputError
from search_spaces.gate import Gate

FORMAT_VERSION = "3"
# Log error around which everything varies, and how far the shared constant may be from it.
OFFSET = float(np.log(28))
_CONSTANT = 0.3
_JITTER = 1e-6

_NETWORK = len(FEATURES) - len(NETWORK_FEATURES)
# What the second squared-exponential part of ``shared`` sees.
SIZE_FEATURES = (
    "resolution",
    "macs",
    "parameters",
    "width",
    "depth",
    "se",
    "kernel",
    "smooth",
    "separable",
    "last_width",
    "head_width",
)
_SIZE = [_NETWORK + NETWORK_FEATURES.index(name) for name in SIZE_FEATURES]
# What a recipe has slopes over. Recipes meet at small networks, 60M MACs: training for longer, or with a
# teacher, is worth the more the larger a network is.
SLOPE_FEATURES = ("macs", "resolution", "separable", "parameters", "se", "smooth")
_SLOPES = [_NETWORK + NETWORK_FEATURES.index(name) for name in SLOPE_FEATURES]
_MEETING = torch.tensor([-1.2, 0, 0, 0, 0, 0], dtype=torch.float64)
EFFECTS = 1 + len(SLOPE_FEATURES)


# Names of the inducing points of benchmarks in a file.
_OWN = tuple(f"own.{name}" for name in BENCHMARKS)


class ParametersError(InputError):
    """A parameters file that this version cannot use."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Logarithms of the scales; D features, two benchmarks, K kinds of recipe.

    Attributes:
        length: (D,) length scales of the squared-exponential part of ``shared``.
        slope: (D,) standard deviations of its linear part.
        amplitude: (1,) standard deviation of its squared-exponential part.
        size_length: (len(SIZE_FEATURES),) length scales of the part over the whole network's features.
        size_amplitude: (1,) standard deviation of that part.
        own_length: (D,) length scales of ``own``.
        own_slope: (D,) standard deviations of the linear part of ``own``.
        own_amplitude: (2,) standard deviations of its squared-exponential part, by benchmark.
        offset: (K,) standard deviations of a recipe's offset, by kind.
        recipe_slope: (K, len(SLOPE_FEATURES)) standard deviations of a recipe's slopes, by kind.
        noise: (5,) standard deviations of an observation: three kinds of recipes, then benchmarks.
    """

    length: Tensor
    slope: Tensor
    amplitude: Tensor
    size_length: Tensor
    size_amplitude: Tensor
    own_length: Tensor
    own_slope: Tensor
    own_amplitude: Tensor
    offset: Tensor
    recipe_slope: Tensor
    noise: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def shared(self, left: Tensor, right: Tensor) -> Tensor:
        """Covariance of ``shared`` between (N, D) and (M, D) features, (N, M)."""
        smooth = _squared_exponential(left, right, self.length, self.amplitude)
        size = _squared_exponential(left[:, _SIZE], right[:, _SIZE], self.size_length, self.size_amplitude)
        return smooth + size + (left * torch.exp(2 * self.slope)) @ right.T + _CONSTANT**2

    def shared_variance(self, inputs: Tensor) -> Tensor:
        """Prior variance of ``shared`` at (N, D) features, (N,)."""
        smooth = torch.exp(2 * self.amplitude) + torch.exp(2 * self.size_amplitude) + _CONSTANT**2
        return smooth + inputs**2 @ torch.exp(2 * self.slope)

    def own(self, left: Tensor, right: Tensor, benchmark: int) -> Tensor:
        """Covariance of a benchmark's ``own`` between (N, D) and (M, D) features, (N, M)."""
        smooth = _squared_exponential(left, right, self.own_length, self.own_amplitude[benchmark])
        return smooth + (left * torch.exp(2 * self.own_slope)) @ right.T

    def own_variance(self, inputs: Tensor, benchmark: int) -> Tensor:
        """Prior variance of a benchmark's ``own`` at (N, D) features, (N,)."""
        return torch.exp(2 * self.own_amplitude[benchmark]) + inputs**2 @ torch.exp(2 * self.own_slope)

    def effects(self, inputs: Tensor, recipe: Recipe) -> Tensor:
        """The factors of a recipe's standardised effects, (N, D) -> (N, EFFECTS)."""
        kind = KINDS.index(recipe.kind)
        slopes = (inputs[:, _SLOPES] - _MEETING) * torch.exp(self.recipe_slope[kind])
        return torch.cat([torch.exp(self.offset[kind]).expand(len(inputs), 1), slopes], dim=1)

    def noise_variance(self, recipe: Recipe) -> Tensor:
        """Of one training run, ()."""
        number = KINDS.index(recipe.kind)
        if recipe.kind == "benchmark":
            number += BENCHMARKS.index(recipe.name)
        return torch.exp(2 * self.noise[number])


def _squared_exponential(left: Tensor, right: Tensor, log_length: Tensor, log_amplitude: Tensor) -> Tensor:
    # Exponent 2 log_amplitude - |left - right|² / 2, as one product of augmented matrices.
    left, right = left / torch.exp(log_length), right / torch.exp(log_length)
    left_part = 2 * log_amplitude - 0.5 * (left**2).sum(1, keepdim=True)
    right_part = -0.5 * (right**2).sum(1, keepdim=True)
    augmented = torch.cat([left, left_part, torch.ones_like(left_part)], dim=1)
    return (augmented @ torch.cat([right, torch.ones_like(right_part), right_part], dim=1).T).exp()


@dataclass(frozen=True, slots=True)
class Basis:
    """Functions whose weights are independent and of variance 1 before anything is seen.

    Attributes:
        scales: of the covariances.
        shared: (M, D) inducing points of ``shared``.
        own: for each benchmark (B, D) inducing points of its ``own``.
        recipes: those that have effects, and the groups of several.
    """

    scales: Scales
    shared: Tensor
    own: tuple[Tensor, ...]
    recipes: tuple[Recipe, ...]

    @property
    def size(self) -> int:
        """Number of weights: of ``shared``, of ``own`` by benchmark, of the effects by recipe."""
        return len(self.shared) + sum(map(len, self.own)) + EFFECTS * len(self.recipes)

    def own_columns(self, benchmark: int) -> slice:
        """Where the weights of a benchmark's ``own`` are."""
        start = len(self.shared) + sum(map(len, self.own[:benchmark]))
        return slice(start, start + len(self.own[benchmark]))

    def effect_columns(self, name: str) -> slice:
        """Where the weights of a recipe's effects are.

        Raises:
            ParametersError: if there is no such recipe.
        """
        for number, recipe in enumerate(self.recipes):
            if recipe.name == name:
                start = len(self.shared) + sum(map(len, self.own)) + EFFECTS * number
                return slice(start, start + EFFECTS)
        raise ParametersError(f"the parameters know no recipe {name!r}; run: python -m nas.predictor fit")

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name; see :meth:`effect_columns` for errors."""
        self.effect_columns(name)
        return next(each for each in self.recipes if each.name == name)

    def shared_root(self) -> Tensor:
        """Lower triangular root of the covariance of ``shared`` at its inducing points."""
        return _root(self.scales.shared(self.shared, self.shared))

    def own_root(self, benchmark: int) -> Tensor:
        """The same for a benchmark's ``own``."""
        points = self.own[benchmark]
        return _root(self.scales.own(points, points, benchmark))

    def rows(self, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of the weights for N networks under given recipes.

        Returns:
            (N, size) rows; (N,) prior variance that the basis cannot carry; (N,) variance of the noise.
        """
        scales = self.scales
        shared = torch.linalg.solve_triangular(
            self.shared_root(), scales.shared(self.shared, inputs), upper=False
        ).T
        design = inputs.new_zeros(len(inputs), self.size)
        design[:, : len(self.shared)] = shared
        left = scales.shared_variance(inputs) - (shared**2).sum(1)
        noise = inputs.new_zeros(len(inputs))
        array = np.array(names)
        for name in dict.fromkeys(names):
            numbers = torch.from_numpy(np.flatnonzero(array == name))
            recipe, chosen = self.recipe(name), inputs[numbers]
            for each in recipe.with_group():
                design[numbers, self.effect_columns(each.name)] = scales.effects(chosen, each)
            noise[numbers] = scales.noise_variance(recipe)
            if recipe.kind == "benchmark":
                benchmark = BENCHMARKS.index(name)
                own = torch.linalg.solve_triangular(
                    self.own_root(benchmark), scales.own(self.own[benchmark], chosen, benchmark), upper=False
                ).T
                design[numbers, self.own_columns(benchmark)] = own
                left[numbers] += scales.own_variance(chosen, benchmark) - (own**2).sum(1)
        return design, left.clamp(min=0), noise


def _root(covariance: Tensor) -> Tensor:
    root: Tensor = torch.linalg.cholesky(
        covariance + _JITTER * covariance.diagonal().mean() * torch.eye(len(covariance))
    )
    return root


@dataclass(frozen=True, slots=True)
class Posterior:
    """The fitted process: all that is shipped.

    Attributes:
        basis: what the weights belong to.
        mean: (size,) of the weights.
        covariance: (size, size) of the weights.
        calibration: (3,) factors on standard deviations, from networks left out: published networks, then
            each benchmark.
    """

    basis: Basis
    mean: Tensor
    covariance: Tensor
    calibration: Tensor

    @property
    def recipe_names(self) -> tuple[str, ...]:
        """Names of the recipes it knows."""
        return tuple(recipe.name for recipe in self.basis.recipes if recipe.kind != "group")

    def factor(self, name: str) -> float:
        """Factor on standard deviations under a recipe."""
        number = 1 + BENCHMARKS.index(name) if name in BENCHMARKS else 0
        return float(self.calibration[number])

    @torch.no_grad()
    def predict(self, features: Floats, names: Sequence[str]) -> tuple[Floats, Floats]:
        """Top-1 of one training run and its standard deviation, in percentage points, (N,) each.

        Exact and in double precision; :class:`Evaluator` is fast.

        Args:
            features: (N, D) from :func:`nas.accuracy.features.features`.
            names: recipe of each network.
        """
        design, left, noise = self.basis.rows(torch.from_numpy(features), names)
        variance = left + ((design @ self.covariance) * design).sum(1)
        factors = torch.tensor([self.factor(name) for name in names], dtype=torch.float64)
        error = torch.exp(OFFSET + design @ self.mean)
        deviation = error * torch.sqrt(variance.clamp(min=0) + noise) * factors
        return (100 - error).numpy(), deviation.numpy()

    @torch.no_grad()
    def joint(self, features: Floats, name: str) -> tuple[Floats, Floats, Floats]:
        """Mean (N,), covariance (N, N) of the top-1 of N networks in percentage points, and noise (N,).

        What two networks have in common, such as the recipe's level, is in the covariance. The noise is
        the variance of one training run; with the diagonal it adds up to that of :meth:`predict`.

        Args:
            features: (N, D) from :func:`nas.accuracy.features.features`.
            name: recipe of all of them; none of the benchmarks.
        """
        inputs = torch.from_numpy(features)
        design, _, noise = self.basis.rows(inputs, [name] * len(inputs))
        shared = design[:, : len(self.basis.shared)]
        # What the inducing points do not carry is common to networks that are alike.
        rest = self.basis.scales.shared(inputs, inputs) - shared @ shared.T
        error = torch.exp(OFFSET + design @ self.mean)
        factor = self.factor(name) ** 2
        covariance = error[:, None] * (rest + design @ self.covariance @ design.T) * error * factor
        return (100 - error).numpy(), covariance.numpy(), (error**2 * noise * factor).numpy()

    @torch.no_grad()
    def conditioned(self, features: Floats, log_error: Floats, names: Sequence[str]) -> Posterior:
        """The process after it has seen further networks: an exact update, without the first data.

        The networks become inducing points of their own, so that they tell as much about their
        surroundings as if they had been there from the beginning. Scales and calibration stay.

        Args:
            features: (E, D) from :func:`nas.accuracy.features.features`.
            log_error: (E,) logarithm of 100 less top-1.
            names: E recipes. One that is not known yet is as far from the others as those of kind
                ``other``: its networks tell differences.
        """
        inputs = torch.from_numpy(features)
        grown = self._grown(inputs, names)
        design, left, noise = grown.basis.rows(inputs, names)
        gain = grown.covariance @ design.T
        factor = torch.linalg.cholesky(design @ gain + torch.diag(left + noise))
        residual = torch.from_numpy(log_error) - OFFSET - design @ grown.mean
        update = torch.linalg.solve_triangular(factor, gain.T, upper=False)
        return replace(
            grown,
            mean=grown.mean + gain @ torch.cholesky_solve(residual[:, None], factor)[:, 0],
            covariance=grown.covariance - update.T @ update,
        )

    def _grown(self, inputs: Tensor, names: Sequence[str]) -> Posterior:
        """The same process with inducing points at the inputs, and effects of their recipes.

        Root matrices are triangular, so further inducing points leave the first weights as they are; the
        new ones are independent of them, as nothing has been seen there.
        """
        old = self.basis
        array = np.array(names)
        own = tuple(
            torch.cat([points, inputs[torch.from_numpy(np.flatnonzero(array == name))]])
            for points, name in zip(old.own, BENCHMARKS, strict=True)
        )
        new = tuple(each for each in with_groups(names) if each not in old.recipes)
        basis = Basis(old.scales, torch.cat([old.shared, inputs]), own, (*old.recipes, *new))
        kept = [torch.arange(len(old.shared))]
        for benchmark in range(len(BENCHMARKS)):
            start = basis.own_columns(benchmark).start
            kept.append(torch.arange(start, start + len(old.own[benchmark])))
        start = len(basis.shared) + sum(map(len, basis.own))
        kept.append(torch.arange(start, start + EFFECTS * len(old.recipes)))
        columns = torch.cat(kept)
        mean = inputs.new_zeros(basis.size)
        mean[columns] = self.mean
        covariance = torch.eye(basis.size, dtype=inputs.dtype)
        covariance[columns[:, None], columns] = self.covariance
        return Posterior(basis, mean, covariance, self.calibration)

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write the parameters with notes on where they come from."""
        basis = self.basis
        tensors = {f"scales.{name}": value for name, value in basis.scales.tensors().items()}
        tensors |= {"shared": basis.shared, "mean": self.mean, "calibration": self.calibration}
        tensors |= {f"own.{name}": points for name, points in zip(BENCHMARKS, basis.own, strict=True)}
        # Half of a symmetric matrix, in single precision: it is of size one.
        half = torch.tril_indices(basis.size, basis.size)
        tensors["covariance"] = self.covariance[half[0], half[1]].float()
        header = {
            "format": FORMAT_VERSION,
            "features": json.dumps(FEATURES),
            "recipes": json.dumps([[recipe.name, recipe.kind] for recipe in basis.recipes]),
            **notes,
        }
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> Posterior:
        """Read what :meth:`save` wrote.

        Raises:
            ParametersError: if the file cannot be read, or is of another version.
        """
        command = "run: python -m nas.predictor fit"
        gate = Gate(f"the predictor {path}", ParametersError, command)
        tensors, header = read_tensors(path, gate)
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
            pairs = [
                gate.sequence(each, "recipes", 2) for each in gate.sequence(gate.json(header["recipes"]))
            ]
            recipes = tuple(
                Recipe(gate.string("a recipe", name), cast(Kind, gate.choice("a kind", kind, KINDS)))
                for name, kind in pairs
            )
            basis = Basis(
                Scales(**{each.name: tensors[f"scales.{each.name}"] for each in fields(Scales)}),
                tensors["shared"],
                tuple(tensors[name] for name in _OWN),
                recipes,
            )
            _check_sizes(gate, basis, tensors)
            covariance = torch.zeros(basis.size, basis.size, dtype=torch.float64)
            half = torch.tril_indices(basis.size, basis.size)
            covariance[half[0], half[1]] = tensors["covariance"].double()
            covariance = covariance + covariance.tril(-1).T
            return cls(basis, tensors["mean"], covariance, tensors["calibration"])
        except ParametersError:
            raise
        except KeyError as error:
            raise ParametersError(f"{path} lacks {error}; {command}") from None
        except (RuntimeError, ValueError) as error:
            raise ParametersError(f"{path} is damaged: {str(error).splitlines()[0]}; {command}") from None


def _check_sizes(gate: Gate, basis: Basis, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other sizes or kinds than a process has."""
    count, kinds = len(FEATURES), len(KINDS)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("length", "slope", "own_length", "own_slope"), (count,)),
        **dict.fromkeys(("amplitude", "size_amplitude"), (1,)),
        "size_length": (len(_SIZE),),
        "own_amplitude": (len(BENCHMARKS),),
        "offset": (kinds,),
        "recipe_slope": (kinds, len(SLOPE_FEATURES)),
        "noise": (len(KINDS[:3]) + len(BENCHMARKS),),
    }
    shapes = {f"scales.{name}": each for name, each in shapes.items()}
    for name, points in {"shared": basis.shared, **dict(zip(_OWN, basis.own, strict=True))}.items():
        shapes[name] = (len(points), count)
    shapes |= {"mean": (basis.size,), "calibration": (3,)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != torch.float64:
            gate.fail(f"has {name} of {tuple(tensors[name].shape)} {tensors[name].dtype}, not of {shape}")
    if len({each.name for each in basis.recipes}) < len(basis.recipes):
        gate.fail("names a recipe twice")


class Evaluator:
    """The predictions of a process for one recipe, prepared once and then fast for any number of networks.

    The squared-exponential parts are evaluated in single precision. The constant and linear parts of the
    mean are summed up beforehand in double precision: predictions differ from double precision throughout
    by less than 0.002 points.

    Args:
        posterior: the process.
        name: recipe of all networks; none of the benchmarks.
    """

    @torch.no_grad()
    def __init__(self, posterior: Posterior, name: str) -> None:
        basis = posterior.basis
        scales, points, count = basis.scales, basis.shared, len(basis.shared)
        recipe = basis.recipe(name)
        parts = recipe.with_group()
        effects = [torch.arange(basis.size)[basis.effect_columns(each.name)] for each in parts]
        columns = torch.cat([torch.arange(count), *effects])
        mean, covariance = posterior.mean[columns], posterior.covariance[columns[:, None], columns]
        inverse = torch.linalg.solve_triangular(
            basis.shared_root(), torch.eye(count, dtype=points.dtype), upper=False
        )
        # Whitened rows are `cross` times the transposed inverse root, and effects are linear in features.
        features = points.shape[1]
        linear = torch.zeros(len(columns), features + 1, dtype=points.dtype)
        linear[:count, :features] = inverse @ (points * torch.exp(2 * scales.slope))
        linear[:count, features] = inverse.sum(1) * _CONSTANT**2
        zeros, ones = torch.zeros(1, features, dtype=points.dtype), torch.eye(features, dtype=points.dtype)
        origin = torch.cat([scales.effects(zeros, each) for each in parts], dim=1)[0]
        linear[count:, features] = origin
        unit = torch.cat([scales.effects(ones, each) for each in parts], dim=1) - origin
        linear[count:, :features] = unit.T
        values, vectors = torch.linalg.eigh(torch.eye(len(columns), dtype=points.dtype) - covariance)
        root = values.clamp(min=0).sqrt()[:, None] * vectors.T
        self._mean = (mean @ linear).numpy()  # (D + 1,)
        self._smooth_mean = (mean[:count] @ inverse).numpy().astype(np.float32)
        self._root = (
            torch.cat([root[:, :count] @ inverse, root @ linear], dim=1).T.numpy().astype(np.float32)
        )  # (M + D + 1, R)
        self._points = []
        for length, amplitude, chosen in (
            (scales.length, scales.amplitude, range(features)),
            (scales.size_length, scales.size_amplitude, _SIZE),
        ):
            precision = torch.zeros(features, dtype=points.dtype)
            precision[list(chosen)] = torch.exp(-2 * length)
            scaled = points * precision
            constant = 2 * amplitude - 0.5 * (points * scaled).sum(1)
            self._points.append(torch.cat([scaled, constant[:, None]], dim=1).T.numpy().astype(np.float32))
            self._points[-1].setflags(write=False)
            self._squares = [*getattr(self, "_squares", []), (-0.5 * precision).numpy().astype(np.float32)]
        # The prior variance is a quadratic form without mixed terms.
        self._square = (torch.exp(2 * scales.slope) + (unit**2).sum(1)).numpy()
        self._linear = (2 * unit @ origin).numpy()
        self._constant = float(scales.shared_variance(zeros) + (origin**2).sum())
        self._noise = float(scales.noise_variance(recipe))
        self._factor = posterior.factor(name)

    def __call__(self, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Top-1 of one training run, its standard deviation, and how little the data tell of it.

        Args:
            features: (N, D) from :func:`nas.accuracy.features.features`.

        Returns:
            (N,) percent; (N,) percentage points; (N,) standard deviation of the log error without the noise
            of a training run, small where the data carry the prediction.
        """
        single = features.astype(np.float32)
        squared = single * single
        count = self._points[0].shape[1]
        rows = np.empty((len(features), len(self._root)), np.float32)
        smooth = rows[:, :count]
        for number, points in enumerate(self._points):
            exponent = single @ points[:-1]
            exponent += points[-1]
            exponent += (squared @ self._squares[number])[:, None]
            np.exp(exponent, out=exponent)
            if number:
                smooth += exponent
            else:
                smooth[:] = exponent
        rows[:, count:-1] = single
        rows[:, -1] = 1
        projected = rows @ self._root
        explained = np.einsum("nr,nr->n", projected, projected)
        log_error = OFFSET + features @ self._mean[:-1] + self._mean[-1] + smooth @ self._smooth_mean
        variance = (features * features) @ self._square + features @ self._linear + self._constant - explained
        variance = np.maximum(variance, 0)
        error = np.exp(log_error)
        deviation = error * np.sqrt(variance + self._noise) * self._factor
        return 100 - error, deviation, np.sqrt(variance) * self._factor
