"""From the host to the device: one flat buffer, one asynchronous copy, no wait.

The only core module that knows about streams. A copy from pinned memory is asynchronous: the host
runs on while the device still reads the buffer, so the buffer may be written again only after the
event recorded behind that copy has come to pass. ``PinnedArena`` asks (``query``) and takes another
buffer rather than wait. On the CPU there is no copy: the device views are views of the host buffer,
and every build gets a fresh one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["CopyEngine", "CopyEvent", "PinnedArena", "TorchCopyEngine", "arena_for"]

Fill = Callable[[npt.NDArray[np.int32]], None]


class CopyEvent(Protocol):
    """Marks the end of a copy in the order of a stream."""

    def query(self) -> bool:
        """Whether the copy has run; does not wait."""

    def synchronize(self) -> None:
        """Wait until the copy has run."""


class CopyEngine(Protocol):
    """What the arena needs of a device."""

    def allocate_host(self, num_words: int) -> torch.Tensor:
        """A host int32 tensor that the device can read asynchronously."""

    def allocate_device(self, num_words: int) -> torch.Tensor:
        """A device int32 tensor."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
        """Queue one copy on the current stream and the event behind it."""


class TorchCopyEngine:
    """``CopyEngine`` of any accelerator torch knows by its device module."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)

    def allocate_host(self, num_words: int) -> torch.Tensor:
        """Pinned memory."""
        return torch.empty(num_words, dtype=torch.int32, pin_memory=True)

    def allocate_device(self, num_words: int) -> torch.Tensor:
        """Memory of the device's allocator, which knows the current stream."""
        return torch.empty(num_words, dtype=torch.int32, device=self._device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
        """One ``non_blocking`` copy and an event, both on the device's current stream."""
        target.copy_(source, non_blocking=True)
        event: CopyEvent = self._module.Event()
        # Events record on the current device by default, which need not be ours.
        self._module.current_stream(self._device).record_event(event)
        return event


@dataclass(slots=True)
class _Buffer:
    """A pinned buffer and the event of the last copy out of it; None if there was none."""

    tensor: torch.Tensor
    event: CopyEvent | None = None


class PinnedArena:
    """Grow-only pool of pinned host buffers, one per copy in flight. Thread-safe.

    Args:
        engine: The device's copies, or None on the CPU.
        max_buffers: With this many copies in flight, wait for the oldest instead of allocating.
    """

    def __init__(self, engine: CopyEngine | None, *, max_buffers: int = 16) -> None:
        self._engine = engine
        self._max_buffers = max_buffers
        self._buffers: list[_Buffer] = []  # oldest copy first; a buffer being filled is not in it
        self._lock = threading.Lock()

    @property
    def num_buffers(self) -> int:
        """Buffers held, not counting those being filled at this moment."""
        return len(self._buffers)

    def upload(
        self, num_words: int, fill: Fill, target: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let ``fill`` write ``num_words`` int32 on the host and queue their copy.

        Args:
            num_words: Size of the array ``fill`` gets.
            fill: Writes the host array; called once, before this returns.
            target: Device tensor of ``num_words`` to copy into; None for a new one.

        Returns:
            The device tensor, valid in the order of the current stream.
        """
        engine = self._engine
        if engine is None:
            host = torch.empty(num_words, dtype=torch.int32) if target is None else target
            fill(host.numpy())
            return host
        if num_words == 0:
            return engine.allocate_device(0) if target is None else target
        buffer = self._take(engine, num_words)
        source = buffer.tensor[:num_words]
        try:
            fill(source.numpy())
            device = engine.allocate_device(num_words) if target is None else target
        except BaseException:
            with self._lock:
                self._buffers.insert(0, buffer)  # not copied from: free at once
            raise
        buffer.event = engine.copy(device, source)
        with self._lock:
            self._buffers.append(buffer)
        return device

    def _take(self, engine: CopyEngine, num_words: int) -> _Buffer:
        """A buffer no copy reads from, of at least ``num_words``; the caller owns it."""
        with self._lock:
            free = None
            for at, buffer in enumerate(self._buffers):
                if buffer.event is None or buffer.event.query():
                    free = at
                    if buffer.tensor.numel() >= num_words:
                        break
            if free is not None:
                found = self._buffers.pop(free)
            elif len(self._buffers) >= self._max_buffers:
                found = self._buffers.pop(0)
            else:
                return _Buffer(engine.allocate_host(_rounded(num_words)))
        if free is None and found.event is not None:
            found.event.synchronize()  # outside the lock: other threads may still find a buffer
        found.event = None
        if found.tensor.numel() < num_words:
            found.tensor = engine.allocate_host(_rounded(num_words))
        return found


def _rounded(num_words: int) -> int:
    """Next power of two: a growing step does not allocate anew every time."""
    return max(1 << 12, 1 << (num_words - 1).bit_length())


_arenas: dict[torch.device, PinnedArena] = {}
_arenas_lock = threading.Lock()


def arena_for(device: torch.device) -> PinnedArena:
    """The process-wide arena of ``device``."""
    arena = _arenas.get(device)
    if arena is None:
        with _arenas_lock:
            engine = None if device.type == "cpu" else TorchCopyEngine(device)
            arena = _arenas.setdefault(device, PinnedArena(engine))
    return arena
