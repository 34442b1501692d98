"""Learning-rate rules: from one step's measurement to one factor per param group; and schedules from logged norms."""

from lightning_calib.schedules.distance_over_gradients import DistanceOverGradients as DistanceOverGradients
from lightning_calib.schedules.inverse_norm import InverseNorm as InverseNorm
from lightning_calib.schedules.polyak import Polyak as Polyak
from lightning_calib.schedules.refine import refine_schedule as refine_schedule
from lightning_calib.schedules.rule import LearningRateRule as LearningRateRule
from lightning_calib.schedules.rule import Measurement as Measurement
from lightning_calib.schedules.rule import Setting as Setting
from lightning_calib.schedules.spike_backoff import SpikeBackoff as SpikeBackoff
