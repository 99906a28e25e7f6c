"""The forms in which PyTorch is run, and how; torch is imported when it is first needed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")
_MODES = {"cpu": ("", "default"), "cuda": ("", "default", "reduce-overhead")}
_CUDA_ALONE = ("tf32", "reduce-overhead")


@dataclasses.dataclass(frozen=True)
class TorchForm:
    """One way to run the step.

    Attributes:
      compiled: "" for eager, or `torch.compile`'s mode: `default`, or `reduce-overhead`, which is
        CUDA graphs.
      precision: `float32` in full, `tf32` for its matrix products and convolutions, or `bfloat16`
        by autocast.
      channels_last: whether memory holds the channels of a pixel side by side.
    """

    compiled: str
    precision: str
    channels_last: bool

    @property
    def name(self) -> str:
        """The form without its precision, as `compile channels_last`."""
        how = {"": "eager", "default": "compile"}.get(self.compiled, self.compiled)
        return f"{how} channels_last" if self.channels_last else how


def available() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def version() -> str:
    """The version of torch, and what it was built for."""
    return str(torch_module().__version__)


def forms(device: str, precisions: Sequence[str]) -> list[TorchForm]:
    """Every form that a kind of device has.

    `torch.compile` needs a compiler when it first runs: C++ for `cpu`, Triton for `cuda`.

    Args:
      device: `cpu` or `cuda`.
      precisions: of `PRECISIONS`; `tf32` is left out on `cpu`, which has none.

    Raises:
      ValueError: an unknown device or precision.
    """
    problems = _unknown("device", [device], DEVICES)
    problems += _unknown("precision", precisions, PRECISIONS)
    if problems:
        raise ValueError("; ".join(problems))
    return [
        TorchForm(compiled, precision, channels_last)
        for precision in precisions
        if device == "cuda" or precision not in _CUDA_ALONE
        for compiled in _MODES[device]
        for channels_last in (False, True)
    ]


def check(form: TorchForm, batch_size: int, device: str, size: int, depth: int) -> None:
    """Raises ValueError, naming every problem, where these do not go together."""
    problems = _unknown("device", [device], DEVICES)
    problems += _unknown("precision", [form.precision], PRECISIONS)
    problems += _unknown("compiled", [form.compiled], _MODES["cuda"])
    problems += [
        f"{name} is for cuda alone, not for {device}"
        for name in (form.precision, form.compiled)
        if name in _CUDA_ALONE and device == "cpu"
    ]
    if batch_size < 1:
        problems.append(f"batch_size={batch_size}: must be at least 1")
    if size < 1 or size % 2**depth:
        problems.append(f"size={size}: must be a multiple of {2**depth}, as depth is {depth}")
    if problems:
        raise ValueError("; ".join(problems))


def torch_module() -> Any:
    """The package torch, imported now."""
    return importlib.import_module("torch")


def placed(module_or_images: Any, form: TorchForm) -> Any:
    """A network or a tensor of images in the form's memory layout."""
    if not form.channels_last:
        return module_or_images
    return module_or_images.to(memory_format=torch_module().channels_last)


def images(
    count: int, batch_size: int, size: int, device: str, form: TorchForm, seed: int
) -> tuple[Any, ...]:
    """So many tensors `[batch_size, 3, size, size]`, uniform in [-1, 1], in the form's layout."""
    torch = torch_module()
    draws = torch.Generator(device).manual_seed(seed)
    shape = (batch_size, 3, size, size)
    drawn = (torch.rand(shape, generator=draws, device=device) for _ in range(count))
    return tuple(placed(2 * x - 1, form) for x in drawn)


def adam(parameters: Iterable[Any]) -> Any:
    """The paper's Adam, in one fused kernel where the device has it.

    Warns where it has not, and then runs as `foreach`.
    """
    torch, parameters = torch_module(), list(parameters)
    options: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-8}
    refusal = _not_fused(parameters[0].device)
    if refusal:
        warnings.warn(f"Adam runs as foreach instead: {refusal}", RuntimeWarning, stacklevel=2)
    return torch.optim.Adam(parameters, fused=not refusal, foreach=bool(refusal), **options)


def compiled(function: Callable[..., Any], form: TorchForm) -> Callable[..., Any]:
    """A function as the form runs it.

    Compiled for the shapes it meets and in one graph, or it raises: nothing is left to eager mode.
    What is compiled is a copy, as torch counts the versions of one piece of code and gives up at
    eight.
    """
    if not form.compiled:
        return function
    code = function.__code__.replace()
    copy = types.FunctionType(code, function.__globals__, function.__name__)
    return torch_module().compile(copy, mode=form.compiled, fullgraph=True, dynamic=False)


@contextlib.contextmanager
def settings(form: TorchForm, device: str) -> Iterator[None]:
    """Torch's global settings of the form, for a while: TF32, and trying cuDNN's algorithms."""
    torch = torch_module()
    if device == "cpu":
        yield
        return
    tf32 = form.precision == "tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(form: TorchForm, device: str) -> contextlib.AbstractContextManager[Any]:
    """In which a forward pass is in the form's precision.

    To be entered anew for each: it keeps the weights that it has cast until it is left, so that
    within one a network would go on with those before its update.
    """
    if form.precision != "bfloat16":
        return contextlib.nullcontext()
    torch = torch_module()
    return torch.autocast(device, dtype=torch.bfloat16)


def begin(form: TorchForm) -> None:
    """Says that a step begins, and that CUDA graphs may overwrite what the last one made."""
    if form.compiled == "reduce-overhead":
        torch_module().compiler.cudagraph_mark_step_begin()


def wait(device: str) -> None:
    """Returns when all that was started on the device is done."""
    if device == "cuda":
        torch_module().cuda.synchronize()


def _unknown(name: str, values: Sequence[str], known: Sequence[str]) -> list[str]:
    allowed = ", ".join(map(repr, known))
    return [f"{name}={v!r}: must be one of {allowed}" for v in values if v not in known]


def _not_fused(device: Any) -> str:
    """Why the device has no fused Adam, or "": torch says so no sooner than in a step."""
    torch = torch_module()
    one = torch.zeros(1, device=device, requires_grad=True)
    one.grad = torch.zeros_like(one)
    try:
        torch.optim.Adam([one], fused=True).step()
    except RuntimeError as error:
        return str(error)
    return ""
