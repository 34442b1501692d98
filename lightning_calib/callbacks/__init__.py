"""The callbacks: what users type, one file each, thin over the rest."""

from lightning_calib.callbacks.gradient_centralize import GradientCentralize as GradientCentralize
from lightning_calib.callbacks.gradient_clip import GradientClip as GradientClip
from lightning_calib.callbacks.gradient_monitor import GradientMonitor as GradientMonitor
from lightning_calib.callbacks.gradient_normalize import GradientNormalize as GradientNormalize
from lightning_calib.callbacks.gradient_value_clip import GradientValueClip as GradientValueClip
from lightning_calib.callbacks.learning_rate_control import LearningRateControl as LearningRateControl
from lightning_calib.callbacks.non_finite_guard import NonFiniteGuard as NonFiniteGuard
from lightning_calib.callbacks.precise_batch_norm import PreciseBatchNorm as PreciseBatchNorm
from lightning_calib.callbacks.published import AGC as AGC
from lightning_calib.callbacks.published import AdaGC as AdaGC
from lightning_calib.callbacks.published import AutoClip as AutoClip
from lightning_calib.callbacks.published import ZClip as ZClip
from lightning_calib.callbacks.spike_guard import SpikeGuard as SpikeGuard
