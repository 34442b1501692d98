"""Policies: from the norms that were observed to the norms that are wanted. One file, one method."""

from lightning_calib.functional.max_norm import MaxNorm as MaxNorm
from lightning_calib.policies.ema_relative import EMARelative as EMARelative
from lightning_calib.policies.gradient_stabilizer import GradientStabilizer as GradientStabilizer
from lightning_calib.policies.percentile import Percentile as Percentile
from lightning_calib.policies.weight_relative import WeightRelative as WeightRelative
from lightning_calib.policies.zscore import ZScore as ZScore
