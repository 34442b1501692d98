"""Subtract from each output unit's gradient its mean over the fan-in."""

from lightning.pytorch import LightningModule
from torch import nn

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.participant import FitStart, Needs
from lightning_calib.functional.elementwise import centralize_all_
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import StepRecord


class GradientCentralize(CalibratedCallback):
    r"""Subtract from each output unit's gradient its mean over the fan-in: :math:`\nabla_{w_i} - \mu_{\nabla_{w_i}}`.

    Applies to weights of more than one dimension, embeddings excluded. The gradients are read again afterwards, where
    somebody needs their norm.

    Raises:
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientCentralize
        >>> trainer = Trainer(callbacks=[GradientCentralize()], logger=False)

    Logged:
        ``calib/grad_norm_before``, ``calib/grad_norm_max`` and ``calib/grad_norm_after``.

    Checkpoint:
        Nothing: the method has no state.

    References:
        Yong et al., *Gradient Centralization: A New Optimization Technique for Deep Neural Networks*, ECCV 2020,
        Equation 1.
    """

    _needs = Needs(rereads="gradients are read again behind GradientCentralize", fabric=True)

    def _reset(self) -> None:
        super()._reset()
        self._members: dict[int, list[int]] = {}  # by the optimizer's index: positions in its plan

    def _start(self, fit: FitStart) -> None:
        """Find the embedding tables: their rows are not output units."""
        self._tables = _embedding_weights(fit.module)

    def _lay(self, view: GradientView) -> None:
        """Choose the tensors."""
        each = enumerate(zip(view.plan.tensors, view.plan.whole_shapes, strict=True))
        self._members[view.index] = [i for i, (one, shape) in each if len(shape) > 1 and id(one) not in self._tables]

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Centralise them; the norms change, so they must be read again."""
        view.unscale()
        centralize_all_(view.plan, self._members[view.index])
        view.look_again()
        return record


def _embedding_weights(module: LightningModule) -> frozenset[int]:
    tables = (one for one in module.modules() if isinstance(one, (nn.Embedding, nn.EmbeddingBag)))
    return frozenset(id(table.weight) for table in tables)
