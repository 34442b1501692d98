"""Calibrated gradients for PyTorch Lightning.

Every public name is imported from here. Nothing is loaded before it is asked for, so that a tool which only needs a
part (TensorBoard, say) does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_calib import functional as functional
    from lightning_calib.callbacks import AGC as AGC
    from lightning_calib.callbacks import AdaGC as AdaGC
    from lightning_calib.callbacks import AutoClip as AutoClip
    from lightning_calib.callbacks import GradientCentralize as GradientCentralize
    from lightning_calib.callbacks import GradientClip as GradientClip
    from lightning_calib.callbacks import GradientMonitor as GradientMonitor
    from lightning_calib.callbacks import GradientNormalize as GradientNormalize
    from lightning_calib.callbacks import GradientValueClip as GradientValueClip
    from lightning_calib.callbacks import LearningRateControl as LearningRateControl
    from lightning_calib.callbacks import NonFiniteGuard as NonFiniteGuard
    from lightning_calib.callbacks import PreciseBatchNorm as PreciseBatchNorm
    from lightning_calib.callbacks import SpikeGuard as SpikeGuard
    from lightning_calib.callbacks import ZClip as ZClip
    from lightning_calib.callbacks.clip_search import clip_find as clip_find
    from lightning_calib.callbacks.clip_suggestion import ClipSuggestion as ClipSuggestion
    from lightning_calib.functional import Observation as Observation
    from lightning_calib.functional import Policy as Policy
    from lightning_calib.functional import SegmentReport as SegmentReport
    from lightning_calib.policies import EMARelative as EMARelative
    from lightning_calib.policies import GradientStabilizer as GradientStabilizer
    from lightning_calib.policies import MaxNorm as MaxNorm
    from lightning_calib.policies import Percentile as Percentile
    from lightning_calib.policies import WeightRelative as WeightRelative
    from lightning_calib.policies import ZScore as ZScore
    from lightning_calib.report import Finding as Finding
    from lightning_calib.report import Report as Report
    from lightning_calib.report import ShadowResult as ShadowResult
    from lightning_calib.report.incident import NonFiniteGradientError as NonFiniteGradientError
    from lightning_calib.report.spike import SpikeError as SpikeError
    from lightning_calib.schedules import DistanceOverGradients as DistanceOverGradients
    from lightning_calib.schedules import InverseNorm as InverseNorm
    from lightning_calib.schedules import LearningRateRule as LearningRateRule
    from lightning_calib.schedules import Measurement as Measurement
    from lightning_calib.schedules import Polyak as Polyak
    from lightning_calib.schedules import SpikeBackoff as SpikeBackoff
    from lightning_calib.schedules import refine_schedule as refine_schedule
    from lightning_calib.tensorboard.read_events import read_events as read_events

__version__ = "0.1.0"

_HOMES = {
    "callbacks": (
        "AGC AdaGC AutoClip GradientCentralize GradientClip GradientMonitor GradientNormalize GradientValueClip "
        "LearningRateControl NonFiniteGuard PreciseBatchNorm SpikeGuard ZClip"
    ),
    "callbacks.clip_search": "clip_find",
    "callbacks.clip_suggestion": "ClipSuggestion",
    "functional": "Observation Policy SegmentReport",
    "report": "Finding Report ShadowResult",
    "report.incident": "NonFiniteGradientError",
    "report.spike": "SpikeError",
    "tensorboard.read_events": "read_events",
    "schedules": "DistanceOverGradients InverseNorm LearningRateRule Measurement Polyak SpikeBackoff refine_schedule",
    "policies": "EMARelative GradientStabilizer MaxNorm Percentile WeightRelative ZScore",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = ["functional", *_HOME_OF]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "functional":
        return import_module("lightning_calib.functional")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lightning_calib' has no attribute {name!r}")
    value = getattr(import_module(f"lightning_calib.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
