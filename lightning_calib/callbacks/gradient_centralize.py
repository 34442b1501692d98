"""Subtract from each output unit's gradient its mean over the fan-in."""

from lightning.pytorch import LightningModule
from torch import nn

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.session import Session
from lightning_calib.functional.elementwise import centralize_all_
from lightning_calib.functional.plan import Plan
from lightning_calib.steps.gradient_view import Ledger


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

    works_loose = True
    extra_reading = "gradients are read again behind GradientCentralize"

    def start(self, session: Session) -> None:
        """Find the embedding tables: their rows are not output units."""
        self._tables = _embedding_weights(session.module)

    def lay(self, ledger: Ledger) -> None:
        """Choose the tensors."""
        self._books[ledger.index] = _Chosen(ledger.plan, self._tables)

    def act(self, ledger: Ledger) -> None:
        """Centralise them; the norms change, so they must be read again."""
        ledger.unscale()
        centralize_all_(ledger.plan, self._books[ledger.index].members)
        ledger.forget()


class _Chosen:
    """The tensors of one optimizer that are centralised: matrices that are no embedding tables."""

    def __init__(self, plan: Plan, tables: frozenset[int]) -> None:
        self.members = [i for i, one in enumerate(plan.tensors) if one.ndim > 1 and id(one) not in tables]

    def saved(self) -> dict[str, object]:
        """Nothing to remember."""
        return {}


def _embedding_weights(module: LightningModule) -> frozenset[int]:
    tables = (one for one in module.modules() if isinstance(one, (nn.Embedding, nn.EmbeddingBag)))
    return frozenset(id(table.weight) for table in tables)
