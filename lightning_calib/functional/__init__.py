"""Tensors in, tensors out: measuring, judging and rescaling gradients, with torch alone."""

from lightning_calib.functional.clip import clip_grad_ as clip_grad_
from lightning_calib.functional.judge import Observation as Observation
from lightning_calib.functional.judge import Policy as Policy
from lightning_calib.functional.judge import SegmentReport as SegmentReport
from lightning_calib.functional.judge import State as State
