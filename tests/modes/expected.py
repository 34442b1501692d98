"""The matrix: what every public callback does in every mode. The tests run it; docs/compatibility.md is made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from helpers.newer import newer
from helpers.tiny_modules import scaled
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from modes import hosts, models, optimizers, parameters, ways
from modes.laws import CASES, SHADOWED
from modes.matrix import Mode
from modes.models import ADAMW

EMAWeightAveraging, WeightAveraging = (
    newer("lightning.pytorch.callbacks", name, "Lightning 2.6") for name in ("EMAWeightAveraging", "WeightAveraging")
)

WATCHING = [name for name, case in CASES.items() if case.observes and case.writes]
ACTING = [name for name, case in CASES.items() if name not in WATCHING and case.writes]
SPIKES = [name for name in CASES if name.startswith("SpikeGuard")]
LOW = 1e-2  # bfloat16 has eight bits
BY_HAND = {
    "PreciseBatchNorm": "With manual optimization `training_step` would take optimizer steps. Pass "
    "`PreciseBatchNorm(forward=...)`, a callable of the module and a batch that only runs the network."
}
MANUAL, SEVERAL = (
    {
        "SpikeGuard": f"cannot rewind under {mode}: the weights would change between forward and backward passes of "
        'one batch. Use SpikeGuard(ladder=("skip", "stop")).'
    }
    for mode in ("manual optimization", "several optimizers")
)
OPTIMIZERS = {
    "Adam": partial(torch.optim.Adam, lr=1e-2),
    "AdamW": ADAMW,
    "SGD": partial(torch.optim.SGD, lr=0.02, momentum=0.9),
}


def scaler() -> dict:
    return {"plugins": scaled(2.0**8)}


def _precisions() -> list[Mode]:
    kinds = {
        "32-true": (lambda: {"precision": "32-true"}, 2e-5),
        "64-true": (lambda: {"precision": "64-true"}, 1e-9),
        "bf16-true": (lambda: {"precision": "bf16-true"}, LOW),
        "bf16-mixed": (lambda: {"precision": "bf16-mixed"}, 2e-5),
        "16-mixed with a GradScaler": (scaler, 2e-5),
    }
    return [
        Mode(f"{kind}, {'fused ' if fused else ''}{name}", partial(models.Net, partial(make, fused=fused)), trainer,
             tolerance=tolerance, line=f"{kind}: {'fused ' if fused else ''}Adam, AdamW and SGD")
        for kind, (trainer, tolerance) in kinds.items()
        for name, make in OPTIMIZERS.items()
        for fused in (False, True)
    ]  # fmt: skip


def _windows() -> list[Mode]:
    return [
        Mode("windows of 3 micro-batches, the last one short", trainer=lambda: {"accumulate_grad_batches": 3}),
        Mode("the same, fused, with a GradScaler", partial(models.Net, partial(ADAMW, fused=True)),
             lambda: {"accumulate_grad_batches": 3, **scaler()}),
        Mode("`GradientAccumulationScheduler`: 2, then 3",
             before=lambda: [GradientAccumulationScheduler({0: 2, 1: 3})]),
        Mode("manual optimization, two micro-batches per step", models.Manual, refuses=BY_HAND | MANUAL),
    ]  # fmt: skip


LBFGS = (
    "LBFGS is not supported: it evaluates the gradient several times per step, and each call would be judged as a step "
    "of its own. Use another optimizer, a first-order one."
)
PAST = (
    "An optimizer's step has gone past Lightning: `self.optimizers(use_pl_optimizer=False)` gives torch's own "
    "optimizer, whose step no callback sees. Use `self.optimizers()`."
)

HALVES = (
    "SGD has stepped the parameters of SAM by itself, as sharpness-aware minimisation by `first_step` and "
    "`second_step` does: `on_before_optimizer_step` was not called, so no callback saw the gradient. Use "
    "`optimizer.step()` of `self.optimizers()`, or clip with `lightning_calib.functional.clip_grad_` before the inner "
    "step."
)


def _stepping() -> list[Mode]:
    return [
        Mode("two adversaries, toggled, an optimizer each", models.Adversaries, refuses=BY_HAND | SEVERAL),
        Mode("`training_step` returns None now and then", partial(models.Net, silent=(2, 8)),
             quiet=(".*returned `None`.*",)),
        Mode("`configure_optimizers` returns None", models.Headless, quiet=(".*configure_optimizers.*",), acts=False),
        Mode("a scheduler per step", models.Scheduled),
        Mode("BatchNorm epoch of `StochasticWeightAveraging`", trainer=lambda: {"max_epochs": 3},
             after=lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]),
        Mode("LBFGS", partial(models.Net, partial(torch.optim.LBFGS, lr=0.1, max_iter=3)),
             refuses=dict.fromkeys(ACTING, LBFGS), silent=dict.fromkeys(WATCHING, LBFGS)),
        Mode("`self.optimizers(use_pl_optimizer=False)`", models.Bypassing,
             refuses=dict.fromkeys(ACTING, PAST) | BY_HAND | MANUAL, silent=dict.fromkeys(WATCHING, PAST)),
        Mode("SAM by `first_step` and `second_step`", partial(models.Halves, partial(models.SAM, lr=0.02)),
             refuses=dict.fromkeys(ACTING, HALVES) | BY_HAND | MANUAL, silent=dict.fromkeys(WATCHING, HALVES)),
    ]  # fmt: skip


COMPLEX = "Complex gradients cannot be clamped by value. Clip their norm: GradientClip(1.0)."


class Thaw(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[:2], train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[:2], optimizer, lr=0.01)


def _parameters() -> list[Mode]:
    sparse = partial(torch.optim.SparseAdam, lr=1e-2)
    return [
        Mode("groups with options of their own, one of them empty", parameters.Grouped),
        Mode("groups added by `BaseFinetuning`", models.Thawing, before=lambda: [Thaw()]),
        Mode("unused, frozen, tied, empty and missing", parameters.Odd),
        Mode("complex", parameters.Complex, refuses={"GradientValueClip": COMPLEX}),
        Mode("a learning rate in a tensor", partial(models.Net, lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)))),
        Mode(
            "Muon beside AdamW",
            partial(parameters.Split, partial(newer("torch.optim", "Muon", "torch 2.9"), lr=0.01)),
            refuses=BY_HAND | SEVERAL,
        ),
        Mode("Adafactor", partial(models.Net, partial(newer("torch.optim", "Adafactor", "torch 2.5"), lr=1e-2))),
        Mode("SparseAdam beside AdamW", partial(parameters.Words, sparse), refuses=BY_HAND | SEVERAL),
        Mode("`torch.compile(module)`", fit=ways.compiled),
    ]


UNRATED = (
    "LearningRateControl cannot control Unrated: `lr` must be a number or a tensor in each param group, got None in "
    "group 0: the optimizer finds its step size by itself. Use another optimizer, or leave LearningRateControl out."
)
UNSEEN = (
    "Around is not supported: its constructor skips that of `torch.optim.Optimizer`, so `step` runs none of torch's "
    "hooks, and what it does cannot be seen. Use the optimizer that it wraps, or call `super().__init__(params, "
    "defaults)` in its constructor."
)


def _optimizers() -> list[Mode]:
    def around(kind: type) -> Callable[..., Any]:
        return partial(models.Net, lambda params: kind(models.SGD(params)))

    frees, grows = partial(optimizers.Frees, lr=0.05), partial(optimizers.Grows, lr=0.03)

    return [
        Mode("an optimizer without a learning rate", partial(models.Net, optimizers.Unrated),
             refuses={"LearningRateControl": UNRATED}),
        Mode("an optimizer with `lr=None`", partial(models.Net, partial(optimizers.Unrated, lr=None)),
             refuses={"LearningRateControl": UNRATED}),
        Mode("an optimizer that frees its gradients in its step", partial(models.Net, frees)),
        Mode("an optimizer that changes its own learning rate", partial(models.Net, grows)),
        Mode("a wrapper that skips `Optimizer.__init__`, such as `Lookahead`", around(optimizers.AroundWithHooks)),
        Mode("such a wrapper without torch's hooks around its step", around(optimizers.Around),
             refuses=dict.fromkeys(ACTING, UNSEEN), silent=dict.fromkeys(WATCHING, UNSEEN)),
    ]  # fmt: skip


RESUMED = (".*your dataloader is not resumable.*",)


def _life() -> list[Mode]:
    first = {
        "PreciseBatchNorm": "EMAWeightAveraging would replace the statistics after the pass. "
        "List PreciseBatchNorm after EMAWeightAveraging."
    }
    return [
        Mode("the same callbacks in a second fit", fit=ways.twice),
        Mode("stopped inside an epoch and resumed", fit=ways.resumed, quiet=RESUMED),
        Mode("`Trainer.test(ckpt_path=...)`, then a fit", models.Validated, fit=ways.after_a_test),
        Mode("`Tuner.lr_find`, then the fit", models.Searchable, fit=partial(ways.searched, "lr_find")),
        Mode("`Tuner.scale_batch_size`, then the fit", models.Searchable, fit=partial(ways.searched, "batch_size")),
        Mode("`WeightAveraging` before ours", before=lambda: [WeightAveraging()]),
        Mode("`EMAWeightAveraging` after ours", after=lambda: [EMAWeightAveraging()], refuses=first),
        Mode("`copy.deepcopy` of a callback that was used", fit=partial(ways.copied, copy.deepcopy)),
        Mode("`pickle` of a callback that was used (`ddp_spawn`)", fit=partial(ways.copied, ways.through_pickle)),
        Mode("again after an exception", fit=ways.by_exception),
        Mode("again after Ctrl-C", fit=ways.by_interrupt),
        Mode("validation and its sanity check", models.Validated),
        Mode("`fast_dev_run`", trainer=lambda: {"fast_dev_run": True}, rows=False, acts=False),
        Mode("`barebones`", trainer=lambda: dict.fromkeys(
            ("logger", "log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        ) | {"barebones": True}, rows=False),
        Mode("`overfit_batches=2`", trainer=lambda: {"overfit_batches": 2}),
        Mode("no logger", trainer=lambda: {"logger": False}, rows=False),
    ]  # fmt: skip


ITSELF = (
    "DeepSpeedStrategy is not supported: DeepSpeed keeps the gradients to itself, and finds their norm when it takes "
    "the step. Use `GradientMonitor`, which works, and counts the steps that DeepSpeed drops because their norm is not "
    "finite; `Trainer(gradient_clip_val=...)`, which Lightning makes DeepSpeed's own `gradient_clipping`; for anything "
    "else FSDP2 (`ModelParallelStrategy`)."
)
UNJUDGED = (
    "GradientMonitor judges no shadow under DeepSpeed ZeRO-2, which keeps the gradients to itself. Leave `shadow` out, "
    "or use FSDP1, FSDP2 or DDP."
)
TORN = (
    "DeepSpeedStrategy is not supported: outside its own forward the parameters are not whole. Use FSDP2 "
    "(`ModelParallelStrategy`) or DDP."
)
LOOP = (
    "It was called outside `Trainer.fit`, and needs more than this one hook. Use a Trainer, or "
    "`lightning_calib.functional.clip_grad_`, which clips in any loop."
)


def _elsewhere() -> list[Mode]:
    return [
        Mode("`pytorch_lightning.Trainer`, the other package", ways.Foreign, fit=ways.in_the_other_package),
        Mode("`LightningCLI`, from YAML and from the file that it saves", check=hosts.check_cli),
        Mode("a Fabric loop: `fabric.call(\"on_before_optimizer_step\", ...)`", check=hosts.check_fabric,
             refuses=dict.fromkeys(['NonFiniteGuard("skip")', "LearningRateControl", *SPIKES], LOOP),
             silent=dict.fromkeys(WATCHING, LOOP),
             absent=("PreciseBatchNorm",)),
    ]  # fmt: skip


GROUPS = {
    "Precision and optimizer": _precisions(),
    "Accumulation": _windows(),
    "Ways of stepping": _stepping(),
    "Parameters and optimizers": _parameters() + _optimizers(),
    "Life cycle": _life(),
    "Hosts and strategies": _elsewhere(),
    "Two processes (gloo, CPU): what one would have done": [
        Mode("DDP", check=hosts.check_two_processes),
        Mode("FSDP2 (`fully_shard` under `ModelParallelStrategy`)", check=hosts.check_two_processes),
        Mode("FSDP1 (`FSDPStrategy`): FULL_SHARD, SHARD_GRAD_OP, NO_SHARD", check=hosts.check_two_processes),
        Mode("tensor parallel beside plain parameters", check=hosts.check_two_processes),
        Mode(
            "DeepSpeed 0.19.8 (`DeepSpeedStrategy`, ZeRO 1, 2 and 3; by `make test-deepspeed`, 2026-11-26)",
            check=hosts.check_deepspeed,
            refuses=dict.fromkeys(ACTING, ITSELF) | {"PreciseBatchNorm": TORN},
            silent={'NonFiniteGuard("warn")': ITSELF, SHADOWED: UNJUDGED},
        ),
    ],
}
MODES = [mode for modes in GROUPS.values() for mode in modes]
NOT_RUN = (
    "any CUDA, MPS or other accelerator, and so float16 autocast and GradScaler there (the rows above are on the CPU)",
    "NCCL, several nodes, more than two processes (but for FSDP1, also in hybrid shards: four)",
    "DeepSpeed on a GPU (Lightning asks for one, and a subclass of its strategy brought it to the CPU), with "
    "parameters that are offloaded, with experts (refused) or pipelines, in several nodes",
    "FSDP1 with parameters that are kept on the CPU (`cpu_offload`): it is refused",
    "the Hugging Face Trainer and Accelerate: [without a Trainer](how-to/without-a-trainer.md) has the function",
)
