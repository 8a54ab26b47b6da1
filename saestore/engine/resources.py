"""What a process holds once: loaded objects shared by its tasks, and a lock per device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from saestore.budget import return_freed_memory
from saestore.errors import InputError

T = TypeVar("T")

_loaded: OrderedDict[Hashable, Any] = OrderedDict()
_loading = threading.Lock()
_device_locks: dict[str, threading.Lock] = {}


def load_once(key: Hashable, load: Callable[[], T], *, keep: int = 1) -> T:
    """Return the process's object for a key, loading it if need be; the `keep` last used of its kind stay.

    Parameters
    ----------
    key : tuple
        Its first element is the kind.
    load : callable
        Makes the object.
    keep : int
        Objects of this kind that may stay in memory; older ones are dropped before a new one is loaded.
    """
    assert isinstance(key, tuple)
    with _loading:
        if key in _loaded:
            _loaded.move_to_end(key)
            return _loaded[key]  # type: ignore[no-any-return]
        same_kind = [other for other in _loaded if isinstance(other, tuple) and other[0] == key[0]]
        for other in same_kind[: max(0, len(same_kind) - keep + 1)]:
            del _loaded[other]
        value = load()
        return_freed_memory()
        _loaded[key] = value
        return value


def release(kind: str) -> None:
    """Drop what this process has loaded of a kind, so that later work finds the memory free."""
    with _loading:
        for key in [key for key in _loaded if isinstance(key, tuple) and key[0] == kind]:
            del _loaded[key]
    return_freed_memory()


def usable_device(wish: str) -> str:
    """Return the device that is meant, which torch can use: `auto` is CUDA, then MPS, then the CPU.

    Raises
    ------
    InputError
        It cannot be used here.
    """
    import torch

    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=wish)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"device {wish!r} cannot be used here ({reason}); try auto") from None
    return wish


def device_lock(device: str) -> threading.Lock:
    """Return the process's lock of a device: tasks take turns to compute, and read and write meanwhile."""
    with _loading:
        return _device_locks.setdefault(device, threading.Lock())
