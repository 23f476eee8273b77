"""A simulated accelerator: tensors that live apart from the CPU's, and a count of what a real one would be asked for.

    with SimulatedDevice() as device:
        model = device.move(model)
        rows = model.generate(device.move(input_ids), seed=0)
    values(rows)          the same rows on the CPU
    device.launches       how often each operation was launched
    device.waits          where the host waited for the device, or sent it something: (what, file:line)

A `DeviceTensor` keeps its numbers on the CPU and says that it is on "meta", the one device that torch knows everywhere.
An operation between it and a tensor of the CPU raises, as on a GPU. What it does not show: kernels and their rounding,
memory, streams.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "view _unsafe_view _reshape_alias reshape expand as_strided alias detach slice select split split_with_sizes "
        "unbind chunk transpose t permute squeeze unsqueeze unfold narrow diagonal lift_fresh _to_copy_view"
    ).split()
)
"""What launches nothing: another look at the same numbers."""
READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense nonzero masked_select is_nonzero equal unique_consecutive _unique _unique2 unique_dim "
        "bincount repeat_interleave"
    ).split()
)
"""Operations whose result, or its size, is needed by the host."""
INDEXED = frozenset(("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"))
PACKAGES = ("/udm_text/", "/continuous/")


class DeviceTensor(torch.Tensor):
    """A tensor of the simulated device; `on_cpu` holds what is in it."""

    on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor, requires_grad: bool = False):
        same = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset(), "dtype": on_cpu.dtype}
        make = torch.Tensor._make_wrapper_subclass
        tensor = make(cls, on_cpu.shape, device=DEVICE, layout=on_cpu.layout, requires_grad=requires_grad, **same)
        tensor.on_cpu = on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _active().launch(func, args, kwargs or {})

    def tolist(self) -> Any:
        _active().wait("tolist")
        return self.on_cpu.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of a device has no numpy array: call cpu() first")

    __array__ = numpy

    def __repr__(self, **kwargs: Any) -> str:
        return f"DeviceTensor({self.on_cpu!r})"


def values(x: Any) -> Any:
    """What is in a tensor of the device, as a tensor of the CPU; anything else as it is."""
    return x.on_cpu if isinstance(x, DeviceTensor) else x


_ACTIVE: list[SimulatedDevice] = []


def _active() -> SimulatedDevice:
    if not _ACTIVE:
        raise RuntimeError("a tensor of the simulated device is used outside of `with SimulatedDevice()`")
    return _ACTIVE[-1]


def _named(device: Any) -> bool:
    """Whether this names the simulated device."""
    return isinstance(device, str | torch.device) and torch.device(device) == DEVICE


class SimulatedDevice:
    """Within it tensors can be on the device; it counts what they cause."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> SimulatedDevice:
        _ACTIVE.append(self)
        asks = torch.is_autocast_enabled
        autocast = mock.patch("torch.is_autocast_enabled", lambda *kind: bool(kind[:1] != ("meta",) and asks(*kind)))
        plain = mock.patch("udm_text.backbones.is_plain", lambda weight: True)  # tensors of the device are a subclass
        for part in (autocast, plain, _Functions(), _Operations()):
            self._stack.enter_context(part)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        _ACTIVE.remove(self)

    def reset(self) -> None:
        """Counts from here on."""
        self.launches.clear()
        self.waits.clear()

    @property
    def total(self) -> int:
        """Launches of all operations."""
        return sum(self.launches.values())

    def move(self, x: Any) -> Any:
        """A tensor on the device with these numbers; of a module its weights and buffers, in place, tied ones tied."""
        if not isinstance(x, torch.nn.Module):
            return DeviceTensor(x.detach().clone())
        moved: dict[int, Any] = {}
        for module in x.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None or isinstance(tensor, DeviceTensor):
                        continue
                    if id(tensor) not in moved:
                        new = DeviceTensor(tensor.detach())
                        learns = isinstance(tensor, torch.nn.Parameter)
                        moved[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if learns else new
                    table[name] = moved[id(tensor)]
        return x

    def wait(self, what: str) -> None:
        """Notes that the host waits, at the innermost line of the package that asked for it."""
        frames = (frame for frame in reversed(traceback.extract_stack()) if any(p in frame.filename for p in PACKAGES))
        frame = next((f for f in frames if "/site-packages/" not in f.filename and "/tests/" not in f.filename), None)
        where = "elsewhere" if frame is None else f"{'/'.join(frame.filename.rsplit('/', 2)[-2:])}:{frame.lineno}"
        self.waits[what, where] += 1

    def launch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation of torch on what is in its tensors; counts it where it is one of the device."""
        name, full = func._schema.name, str(func)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, DeviceTensor)]
        target = bool(ours)
        kwargs = dict(kwargs)
        if kwargs.get("device") is not None:
            target = _named(kwargs["device"])
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if name in ("aten::copy_", "aten::_to_copy"):
            target = isinstance(args[0], DeviceTensor) if name == "aten::copy_" else target
            from_device = isinstance(args[1 if name == "aten::copy_" else 0], DeviceTensor)
            if target != from_device:
                self.wait("sent to the device" if target else "fetched from the device")
        elif ours:
            self._refuse_mixture(full, name, args, tensors)
        # repeat_interleave by a number, like `x.repeat_interleave(2)`, never reaches the dispatcher under that name
        if ours and name in READS and not (name == "aten::repeat_interleave" and "self_int" in full):
            self.wait(name.removeprefix("aten::"))
        if ours and name in INDEXED and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None):
            if name == "aten::index" or args[2].ndim:  # a mask is filled by one number without counting what it holds
                self.wait("index by a mask")
        if (ours or target) and name not in VIEWS:
            self.launches[name] += 1
        out = func(*tree_map(values, args), **tree_map(values, kwargs))
        known = {id(x.on_cpu): x for x in ours}
        return tree_map(lambda x: _wrapped(x, known, target), out)

    def _refuse_mixture(self, full: str, name: str, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
        """Raises for tensors of two devices in one operation; torch lets pass numbers, and sends an index along."""
        foreign = [x for x in tensors if not isinstance(x, DeviceTensor) and x.ndim]
        if not foreign:
            return
        if name in INDEXED:
            others = [args[0], *args[2:3]]
            if all(isinstance(x, DeviceTensor) or not x.ndim for x in others if isinstance(x, torch.Tensor)):
                self.wait("index sent to the device")
                return
        raise RuntimeError(
            f"tensors of two devices in {full}: of the CPU {[(tuple(x.shape), x.dtype) for x in foreign]}"
        )


def _wrapped(x: Any, known: dict[int, DeviceTensor], target: bool) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, DeviceTensor):
        return x
    if id(x) in known:  # an operation in place
        return known[id(x)]
    return DeviceTensor(x) if target else x


class _Operations(TorchDispatchMode):
    """Sees the operations that make tensors on the device out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _active().launch(func, args, kwargs or {})


class _Move(torch.autograd.Function):
    """To the device, with a way back for gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return DeviceTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return values(gradients[0])


class _Functions(TorchFunctionMode):
    """Takes the calls that torch would answer for the real "meta", which holds no numbers, before it does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func is torch.Tensor.to and any(map(_named, (*args[1:2], kwargs.get("device")))):
            return self._to(first, *args[1:], **kwargs)
        if isinstance(first, DeviceTensor) and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (first, _as_index(args[1]), *args[2:])
        elif _named(kwargs.get("device")) and not any(isinstance(x, DeviceTensor) for x in tree_leaves(args)):
            kwargs["device"] = "cpu"
            made = func(*args, **kwargs)
            if func in (torch.tensor, torch.as_tensor):
                _active().wait("sent to the device")
            else:
                _active().launches[f"aten::{func.__name__}"] += 1
            return made if isinstance(made, DeviceTensor) else DeviceTensor(made, made.requires_grad)
        return func(*args, **kwargs)

    @staticmethod
    def _to(x: Any, *rest: Any, **kwargs: Any) -> Any:
        dtype = kwargs.get("dtype") or next((a for a in rest if isinstance(a, torch.dtype)), x.dtype)
        if isinstance(x, DeviceTensor):
            return x if x.dtype == dtype else torch.Tensor.to(x, dtype)
        if not kwargs.get("non_blocking"):
            _active().wait("sent to the device")
        return _Move.apply(x.to(dtype))


def _as_index(index: Any) -> Any:
    """Lists of numbers in an index as the tensors that torch makes of them."""

    def one(part: Any) -> Any:
        return torch.tensor(part) if isinstance(part, list) and part else part

    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


def places(counter: Counter[tuple[str, str]]) -> Iterator[str]:
    """The lines that wait, for messages: most often first."""
    return (f"{times} x {what} at {where}" for (what, where), times in counter.most_common())
