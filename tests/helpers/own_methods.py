"""A policy and a learning-rate rule as a user writes them: from the public names of the package alone."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_calib import LearningRateRule, Measurement, Observation, Policy


class Largest(NamedTuple):
    norms: Tensor
    seen: Tensor


@dataclass(frozen=True)
class DecayingMaximum(Policy):
    """At most `share` of the largest norm so far, which fades."""

    share: float = 0.5
    decay: float = 0.9

    def init(self, norms: Tensor) -> Largest:
        return Largest(torch.zeros_like(norms), torch.zeros_like(norms, dtype=torch.int64))

    def __call__(self, observation: Observation, state: Largest) -> tuple[Tensor, Largest]:
        targets = torch.where(state.seen > 0, self.share * state.norms, torch.inf)
        larger = torch.maximum(observation.norms, self.decay * state.norms)
        new = torch.where(observation.observed, larger, state.norms)
        return targets, Largest(new, state.seen + observation.observed)


@dataclass(frozen=True)
class OfTheWeights(Policy):
    """Half of the weights' norm; remembers nothing."""

    needs_weights: ClassVar[bool] = True

    class Nothing(NamedTuple):
        pass

    def init(self, norms: Tensor) -> Nothing:
        return self.Nothing()

    def __call__(self, observation: Observation, state: Nothing) -> tuple[Tensor, Nothing]:
        assert observation.weight_norms is not None
        return 0.5 * observation.weight_norms, state


class Calm(NamedTuple):
    loss: Tensor
    factors: Tensor


@dataclass(frozen=True)
class WaitWhileTheLossRises(LearningRateRule):
    """A quarter of the rate where the loss is above its average and the weights have moved."""

    needs_loss: ClassVar[bool] = True
    needs_distance: ClassVar[bool] = True

    def init(self, norms: Tensor) -> Calm:
        return Calm(norms.new_zeros(()), torch.ones_like(norms))

    def __call__(self, measurement: Measurement, state: Calm) -> tuple[Tensor, Calm]:
        assert measurement.loss is not None
        assert measurement.distances is not None
        loss = measurement.loss.to(state.loss.dtype)
        slow = (loss > state.loss) & (measurement.distances > 0)
        factors = 0.5 * state.factors + 0.5 * torch.where(slow, 0.25, 1.0)
        factors = torch.where(measurement.observed, factors, 1.0)
        kept = torch.where(measurement.observed, factors, state.factors)
        return factors, Calm(torch.lerp(state.loss, loss, 0.1), kept)
