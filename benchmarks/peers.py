"""What else clips, or logs gradients, in a Lightning fit; what is not installed is named, never left out in silence."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, files, version
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn

from benchmarks.variants import EAGER, HIGH, LOW, Variant, pair

INSTALLED_FROM = ("zclip", "smartclip", "timm", "optax")


class InHook(Callback):
    """Any function of the module, in the hook that clipping callbacks use."""

    def __init__(self, function: Callable[[nn.Module], object]) -> None:
        self.function = function

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.function(pl_module)


class NormsByLogDict(Callback):
    """What Lightning's documentation shows: `self.log_dict(grad_norm(self, norm_type=2))` before each step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.log_dict(grad_norm(pl_module, norm_type=2))


class WatchLikeHooks(Callback):
    """A stand-in, written here, for hooks like those of `wandb.watch`, without its writing.

    A hook on every parameter counts; each `every`-th time it brings 64 histogram counts and their ends to the host.
    """

    def __init__(self, every: int) -> None:
        self.every, self.told, self.hooks = every, {}, []  # type: ignore[var-annotated]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, tensor in pl_module.named_parameters():
            self.hooks.append(tensor.register_hook(self._hook(name)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        seen = 0

        def hook(gradient: Tensor) -> None:
            nonlocal seen
            seen += 1
            if seen % self.every == 0:
                flat = gradient.detach().flatten()
                flat = flat[flat.isfinite()]
                low, high = flat.min().item(), flat.max().item()
                self.told[name] = (low, high, torch.histc(flat, 64, low, high).tolist())

        return hook


def versions() -> dict[str, str | None]:
    """Of the packages measured beside; None where one is not installed."""
    return {name: _version(name) for name in INSTALLED_FROM}


def unlogged() -> list[Variant]:
    """Peers on steps of which nothing is logged."""
    found = [
        *pair(
            "torch clip_grad_norm_ in a hook",
            lambda: InHook(lambda module: nn.utils.clip_grad_norm_(module.parameters(), HIGH)),
            lambda: InHook(lambda module: nn.utils.clip_grad_norm_(module.parameters(), LOW)),
            "peer",
        ),
        Variant(
            'Trainer(gradient_clip_algorithm="value")',
            "",
            list,
            {"gradient_clip_val": LOW, "gradient_clip_algorithm": "value"},
            whose="peer",
        ),
        Variant("wandb.watch-like hooks (stand-in)", "quiet", lambda: [WatchLikeHooks(10**9)], whose="peer"),
        Variant("log_dict(grad_norm(...)) each step", "quiet", lambda: [NormsByLogDict()], whose="peer"),
    ]
    if _version("zclip"):
        found += _zclip()
    if _version("smartclip"):
        found += _smartclip()
    if _version("timm"):
        found += _timm()
    return found


def logged() -> list[Variant]:
    """The usual ways to log something of every layer, with a TensorBoardLogger."""
    return [
        Variant("wandb.watch-like hooks (stand-in)", "", lambda: [WatchLikeHooks(1)], tab=True, whose="peer"),
        Variant("log_dict(grad_norm(...)) each step", "", lambda: [NormsByLogDict()], tab=True, whose="peer"),
    ]


def adaptive_clip_grad() -> Callable[..., None]:
    """The function of timm; its file is loaded alone, because the package needs a torchvision that fits torch."""
    (path,) = [str(one.locate()) for one in files("timm") or () if str(one) == "timm/utils/agc.py"]
    spec = importlib.util.spec_from_file_location("timm_utils_agc", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.adaptive_clip_grad  # type: ignore[no-any-return]


def _zclip() -> Iterable[Variant]:
    from zclip import ZClipLightningCallback as Theirs

    plain: dict[str, Any] = {"warmup_steps": 2, "max_grad_norm": None}
    return pair("zclip package", lambda: Theirs(**plain), lambda: Theirs(z_thresh=EAGER, **plain), "peer")


def _smartclip() -> Iterable[Variant]:
    import smartclip

    def ours(clipper: Any) -> Callback:  # what its own callback does, which cannot be imported without transformers
        return InHook(lambda module: smartclip.apply(module, clipper))

    short: dict[str, Any] = {"warmup_steps": 2, "min_history": 2}
    low = {"mode": "percentile", "percentile": 10.0, "history": "window"} | short

    def auto() -> Callback:
        return ours(smartclip.AutoClip(**low))

    return [
        *pair("smartclip package, AutoClip", auto, auto, "peer"),
        *pair(
            "smartclip package, ZScoreClip",
            lambda: ours(smartclip.ZScoreClip(zmax=HIGH, **short)),
            lambda: ours(smartclip.ZScoreClip(zmax=EAGER, **short)),
            "peer",
        ),
    ]


def _timm() -> Iterable[Variant]:
    clip = adaptive_clip_grad()
    return pair(
        "timm adaptive_clip_grad in a hook",
        lambda: InHook(lambda module: clip(module.parameters(), clip_factor=HIGH)),
        lambda: InHook(lambda module: clip(module.parameters(), clip_factor=LOW)),
        "peer",
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
