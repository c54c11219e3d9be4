# SPDX-License-Identifier: GPL-2.0-or-later
"""Python functions as kernels of the software CUDA device (tools/softcuda).

A GPU's module is machine code; the software device's is a name for functions that the program
registered with it. Their parameters arrive as on a GPU: one by one, as bytes of declared sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from minilm.driver import Driver, Parameter

__all__ = ["F32", "U32", "Address", "KernelError", "Program", "Registry"]

Address = Annotated[int, ctypes.c_uint64]
U32 = Annotated[int, ctypes.c_uint32]
F32 = Annotated[float, ctypes.c_float]

_Kernel = TypeVar("_Kernel", bound=Callable[..., None])
_ENTRY = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_void_p))


class KernelError(RuntimeError):
    """A kernel raised an exception on the device's thread; its cause is that exception."""


class Registry:
    """The kernels that a module of Python functions defines."""

    def __init__(self) -> None:
        self.types: dict[str, list[type[Parameter]]] = {}
        self.failure: BaseException | None = None
        # The device calls these for as long as the process lives: they must never be collected.
        self._entries: dict[str, Any] = {}

    def kernel(self, function: _Kernel) -> _Kernel:
        """Declares a function as a kernel; its annotations are its parameter layout.

        It runs once a launch, on a thread of the device, when its turn in the stream has come.
        """
        hints = get_type_hints(function, include_extras=True)
        del hints["return"]
        types: list[type[Parameter]] = [hint.__metadata__[0] for hint in hints.values()]

        def entry(_launch: int, parameters: Any) -> None:
            # Nothing can be raised through the device's thread.
            try:
                function(
                    *(ctypes.cast(parameters[i], POINTER(t)).contents.value for i, t in enumerate(types))
                )
            except BaseException as error:
                self.failure = self.failure or error

        self.types[function.__name__] = types
        self._entries[function.__name__] = _ENTRY(entry)
        return function

    def load(self, driver: Driver) -> Program:
        """Registers every kernel with the device and loads a module that holds them."""
        register = driver.library.softcudaRegisterKernel
        register.argtypes = (c_char_p, _ENTRY, c_uint, POINTER(c_size_t))
        register.restype = c_int
        for name, types in self.types.items():
            sizes = (c_size_t * len(types))(*map(ctypes.sizeof, types))
            if register(name.encode(), self._entries[name], len(types), sizes):
                raise RuntimeError(f"the device refused the kernel {name!r}")
        return Program(driver, self)


def _pack(kind: type[Parameter], value: float) -> Parameter:
    """The parameter's bytes; ctypes refuses a fraction where a whole number belongs."""
    return cast(Callable[[float], Parameter], kind)(value)


class Program:
    """A loaded module: launches its kernels by name."""

    def __init__(self, driver: Driver, registry: Registry) -> None:
        self._driver = driver
        self._registry = registry
        module = driver.load_module(b"softcuda")
        self._functions = {name: driver.get_function(module, name) for name in registry.types}

    def launch(self, name: str, *values: float) -> None:
        """Queues a launch. Raises TypeError when a parameter is missing or of the wrong kind."""
        types = self._registry.types[name]
        if len(values) != len(types):
            raise TypeError(f"{name} takes {len(types)} parameters, not {len(values)}")
        self._driver.launch(self._functions[name], list(map(_pack, types, values)))

    def synchronize(self) -> None:
        """Waits for all launches. Raises KernelError if one of them raised."""
        self._driver.synchronize()
        if self._registry.failure is not None:
            raise KernelError("a kernel failed") from self._registry.failure
