"""Tensors in, tensors out: measuring, judging and rescaling gradients, with torch alone."""

from lightning_calib.functional.clip import clip_grad_ as clip_grad_
