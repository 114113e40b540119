"""Devices played on a CPU, whose copies run when they please, and read the host buffer then."""

from __future__ import annotations

import random

import torch

NOT_COPIED = -99


class Event:
    """Behind one copy."""

    def __init__(self, device, copy):
        self.device, self.pending = device, copy

    def query(self):
        return self.pending is None

    def synchronize(self):
        self.device.waits += 1
        self.device.run(self)


class LateDevice:
    """Copies run some time later, one before another that was queued first.

    Attributes:
        most_in_flight: Most copies that were queued at one time.
        copies, words: Copies queued so far, and int32 words of them.
        host_allocations, waits: Pinned buffers allocated; waits of the host for a copy.
    """

    def __init__(self, seed=0, *, most_in_flight=0):
        self.rng = random.Random(seed)
        self.pending = []
        self.most_in_flight = most_in_flight
        self.copies = self.words = self.host_allocations = self.waits = 0

    def allocate_host(self, num_words):
        self.host_allocations += 1
        return torch.empty(num_words, dtype=torch.int32)

    def allocate_device(self, num_words):
        return torch.full((num_words,), NOT_COPIED, dtype=torch.int32)

    def copy(self, target, source):
        event = Event(self, (target, source))
        self.pending.append(event)
        self.copies += 1
        self.words += source.numel()
        self.most_in_flight = max(self.most_in_flight, len(self.pending))
        return event

    def run(self, event):
        target, source = event.pending
        target.copy_(source)
        event.pending = None
        self.pending.remove(event)

    def run_some(self):
        """What a device does meanwhile: nothing, mostly, or any of what is queued."""
        number = self.rng.choice([0, 0, 1, 1, 2, 3, 4]) if len(self.pending) > 4 else 0
        for event in self.rng.sample(self.pending, number):
            self.run(event)

    def run_all(self):
        while self.pending:
            self.run(self.pending[0])


class PromptDevice(LateDevice):
    """Copies run at once, as on the null device of a test that counts them."""

    def copy(self, target, source):
        event = super().copy(target, source)
        self.run(event)
        return event


class Claiming(Event):
    def query(self):
        return True


class UnguardedDevice(LateDevice):
    """The late device, with events that claim at once that their copy has run: no guard at all."""

    def copy(self, target, source):
        event = super().copy(target, source)
        return Claiming(self, event.pending)
