"""What a policy, or a learning-rate rule, must fulfil: tried once, when it is laid for its segments."""

from collections.abc import Callable, Mapping, Sized
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_flag, told
from lightning_calib.functional.judge import Method, Observation, Policy, State, fresh_state
from lightning_calib.functional.segments import Segments


class Answer(NamedTuple):
    """What a method gives back beside its state: what it is called, and which numbers it may hold."""

    name: str
    rule: str
    may_be_infinite: bool


def check_policy(policy: Policy, segments: Segments) -> None:
    """Judge norms of 1 once, and look at what comes back.

    Raises:
        TypeError: If the policy returns something else than it must.
        ValueError: If a shape, a dtype, a device or a number is not what it must be, it writes into its arguments, or
            its state would take more than 64 MB.
    """
    remedy = "Declare `needs_weights: ClassVar[bool] = True` for a policy that reads `observation.weight_norms`."
    check_flag(f"{_name(policy)}.needs_weights", policy.needs_weights, remedy)

    def see(norms: Tensor) -> Observation:
        return Observation(norms, norms > 0, norms.clone())

    targets = Answer("targets", "norms >= 0, and inf for no opinion", True)
    try_once(policy, segments, see, {"needs_weights": ("weight_norms",)}, targets)


def try_once(
    method: Any, segments: Segments, see: Callable[[Tensor], Any], needs: Mapping[str, tuple[str, ...]], answer: Answer
) -> None:
    """Ask a method about what ``see(norms)`` shows, without those parts that it does not declare it ``needs``."""
    plan, count = segments.plan, len(segments)
    devices = [plan.device] if plan.device.type == "cuda" else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        check_first_state(method, torch.empty(count, dtype=plan.dtype, device="meta"))
        state = fresh_state(method, segments)
        if not count:
            return
        norms = torch.ones(count, dtype=plan.dtype, device=plan.device)
        whole = see(norms)
        shown = whole._replace(
            **{part: None for flag, parts in needs.items() if not getattr(method, flag) for part in parts}
        )
        tensors = {f"{type(shown).__name__.lower()}.{key}": one for key, one in shown._asdict().items()}
        tensors.update({f"state.{key}": one for key, one in state._asdict().items()})
        versions, marks = _versions(tensors), _marks(method)
        try:
            returned = method(shown, state)
        except Exception as trouble:
            _blame_an_undeclared_need(method, whole, shown, needs, trouble)
            raise
        _check_untouched(method, tensors, versions, marks)
        _check_returned(method, returned, norms, state, answer)


def check_first_state(method: Method, norms: Tensor) -> State:
    """The first state for segments like ``norms``, which may be on the meta device; refused if it is no state."""
    call = f"{_name(method)}.init(norms)"
    try:
        state: Any = method.init(norms)
    except RuntimeError as reason:
        if not norms.is_meta:
            raise
        remedy = "Use for instance `torch.zeros_like(norms)` or `norms.new_full((), 0.5)`."
        rule = "made from the shape, the device and the dtype of `norms` alone: its numbers are not there yet"
        raise ValueError(f"`{call}` must be {rule}, got the error {told(str(reason))}. {remedy}") from reason
    if not (isinstance(state, tuple) and hasattr(state, "_asdict")):
        remedy = "Write `class Seen(NamedTuple): mean: Tensor` and return `Seen(torch.zeros_like(norms))`."
        _refuse(TypeError, call, "a NamedTuple of tensors, empty for a policy without memory", state, remedy)
    for key, one in state._asdict().items():
        name, remedy = f"{call}.{key}", "Make it with `torch.zeros_like(norms)` or `norms.new_zeros(())`."
        if not isinstance(one, Tensor):
            _refuse(TypeError, name, "a tensor", one, remedy)
        if one.device != norms.device or one.layout != torch.strided:
            _refuse(ValueError, name, f"a dense tensor on the device of `norms`, {norms.device}", one, remedy)
        if one.requires_grad:
            _refuse(ValueError, name, "a tensor that requires no gradient", one, "Call `.detach()` on it.")
    return cast(State, state)


def _check_returned(method: Method, returned: Any, norms: Tensor, before: State, answer: Answer) -> None:
    call = f"{_name(method)}(...)"
    if not (isinstance(returned, tuple) and len(returned) == 2):
        rule = f"a pair, the {answer.name} and the next state"
        _refuse(TypeError, call, rule, returned, f"Write `return {answer.name}, state`.")
    found, after = returned
    name, remedy = f"the {answer.name} of {call}", f"Use for instance `torch.full_like({_norms(answer)}, 1.0)`."
    if not isinstance(found, Tensor):
        _refuse(TypeError, name, f"a tensor of shape {tuple(norms.shape)}", found, remedy)
    if (found.shape, found.dtype, found.device) != (norms.shape, norms.dtype, norms.device):
        _refuse(ValueError, name, f"of the shape, the dtype and the device of the norms, {_told(norms)}", found, remedy)
    good = (found >= 0) & (answer.may_be_infinite | found.isfinite())
    if not (good.is_meta or bool(good.all())):
        wrong = found[~good][0].item()
        raise ValueError(f"`{name}` must be {answer.rule}, got {wrong} for norms of 1. Use torch.where, or clamp them.")
    if type(after) is not type(before):
        rule, remedy = f"a {type(before).__name__}, as `init` returned", "Return the same NamedTuple each time."
        _refuse(TypeError, f"the next state of {call}", rule, after, remedy)
    grows = getattr(before, "grows", ())
    for (key, old), new in zip(before._asdict().items(), after, strict=True):
        name, remedy = (
            f"the next state's {key} of {call}",
            "Keep it so in each step, with `.to(...)` or another `init`.",
        )
        if not isinstance(new, Tensor):
            _refuse(TypeError, name, "a tensor", new, remedy)
        same = new.shape[:-1] == old.shape[:-1] and new.ndim == old.ndim if key in grows else new.shape == old.shape
        if not same or (new.dtype, new.device, new.layout) != (old.dtype, old.device, old.layout):
            _refuse(ValueError, name, f"{_told(old)}, as `init` returned", new, remedy)


def _check_untouched(
    method: Method, tensors: Mapping[str, Any], versions: Mapping[str, int], marks: Mapping[str, object]
) -> None:
    call = f"{_name(method)}(...)"
    written = [key for key, version in _versions(tensors).items() if version != versions[key]]
    if written:
        remedy = "Make a new tensor: `a + b` in place of `a.add_(b)`, torch.where in place of `a[mask] = b`."
        raise ValueError(
            f"`{call}` must leave its arguments as they are, got one that writes into `{written[0]}`. {remedy}"
        )
    now = _marks(method)
    changed = [key for key in now if now[key] != marks.get(key)]
    if changed:
        raise ValueError(
            f"`{call}` must be the same object after each step, got one that changes its attribute "
            f"`{changed[0]}`: that would be in no checkpoint. Put it into the state that `init` returns."
        )


def _blame_an_undeclared_need(
    method: Any, whole: Any, shown: Any, needs: Mapping[str, tuple[str, ...]], trouble: Exception
) -> None:
    """Say so if the call succeeds once it is shown what one flag of the class asks for."""
    for flag, parts in needs.items():
        if getattr(method, flag):
            continue
        try:
            method(shown._replace(**{part: getattr(whole, part) for part in parts}), method.init(whole.norms))
        except Exception:  # noqa: S112 - the first trouble is the one to show
            continue
        raise ValueError(
            f"`{_name(method)}.{flag}` must be True for a class that reads `{'` and `'.join(parts)}`, got False. "
            f"Declare `{flag}: ClassVar[bool] = True`."
        ) from trouble


def _name(method: object) -> str:
    return type(method).__name__


def _norms(answer: Answer) -> str:
    return "observation.norms" if answer.name == "targets" else "measurement.norms"


def _versions(tensors: Mapping[str, Any]) -> dict[str, int]:
    return {key: one._version for key, one in tensors.items() if isinstance(one, Tensor)}


def _marks(method: object) -> dict[str, object]:
    """What a method holds, so that a change is seen; what is computed once and kept changes nothing."""
    held = {k: v for k, v in vars(method).items() if not isinstance(getattr(type(method), k, None), cached_property)}
    return {
        key: (id(one), one._version if isinstance(one, Tensor) else len(one) if isinstance(one, Sized) else None)
        for key, one in held.items()
    }


def _told(value: object) -> str:
    if not isinstance(value, Tensor):
        return told(value)
    kind = str(value.dtype).removeprefix("torch.")
    return f"a {kind} tensor of shape {tuple(value.shape)} on {value.device}"


def _refuse(kind: type[Exception], name: str, rule: str, value: object, remedy: str) -> NoReturn:
    raise kind(f"`{name}` must be {rule}, got {_told(value)}. {remedy}")
