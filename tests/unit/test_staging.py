"""No buffer is written while a copy still reads it, shown with a stream that delays its copies."""

import threading

import pytest
import torch

from gdn_dispatch.staging import PinnedArena, arena_for


class FakeStream:
    """A device whose copies run only when told to; a host buffer is read at that moment."""

    def __init__(self):
        self.queue = []
        self.host_allocations = 0
        self.waits = 0

    def allocate_host(self, num_words):
        self.host_allocations += 1
        return torch.empty(num_words, dtype=torch.int32)

    def allocate_device(self, num_words):
        return torch.full((num_words,), -99, dtype=torch.int32)

    def copy(self, target, source):
        event = FakeEvent(self)
        self.queue.append((target, source, event))
        return event

    def advance(self, copies=None):
        for _ in range(len(self.queue) if copies is None else copies):
            target, source, event = self.queue.pop(0)
            target.copy_(source)
            event.done = True


class FakeEvent:
    def __init__(self, stream):
        self.stream = stream
        self.done = False

    def query(self):
        return self.done

    def synchronize(self):
        self.stream.waits += 1
        while not self.done:
            self.stream.advance(1)


class Unguarded(FakeStream):
    """The same device, with events that claim their copy has run."""

    def copy(self, target, source):
        super().copy(target, source)
        claims = FakeEvent(self)
        claims.done = True
        return claims


def upload(arena, value, num_words=100):
    return arena.upload(num_words, lambda host: host.fill(value))


def received(tensors):
    return [set(tensor.tolist()) for tensor in tensors]


@pytest.mark.parametrize("advance_after", [1, 2, 3, 5])
def test_no_buffer_is_overwritten_before_its_copy_ran(advance_after):
    stream = FakeStream()
    arena = PinnedArena(stream)
    tensors = []
    for value in range(20):
        tensors.append(upload(arena, value, num_words=50 + value))
        if value % advance_after == 0:
            stream.advance(1)
    stream.advance()
    assert received(tensors) == [{value} for value in range(20)]


def test_without_the_guard_the_same_steps_go_wrong():
    stream = Unguarded()
    arena = PinnedArena(stream)
    tensors = [upload(arena, value) for value in range(4)]
    stream.advance()
    assert received(tensors) == [{3}] * 4


def test_one_copy_per_upload_and_no_wait():
    stream = FakeStream()
    arena = PinnedArena(stream)
    for value in range(5):
        upload(arena, value)
    assert len(stream.queue) == 5
    assert stream.waits == 0


def test_a_buffer_is_reused_once_its_copy_has_run():
    stream = FakeStream()
    arena = PinnedArena(stream)
    for value in range(10):
        upload(arena, value)
        stream.advance()
    assert stream.host_allocations == arena.num_buffers == 1


def test_a_buffer_too_small_is_replaced_not_kept():
    stream = FakeStream()
    arena = PinnedArena(stream)
    upload(arena, 1, num_words=10)
    stream.advance()
    tensor = upload(arena, 2, num_words=100_000)
    stream.advance()
    assert received([tensor]) == [{2}]
    assert arena.num_buffers == 1


def test_a_large_enough_buffer_is_preferred():
    stream = FakeStream()
    arena = PinnedArena(stream)
    upload(arena, 1, num_words=10)
    upload(arena, 1, num_words=100_000)
    stream.advance()
    upload(arena, 2, num_words=100_000)
    assert stream.host_allocations == 2


def test_at_the_cap_the_oldest_copy_is_waited_for():
    stream = FakeStream()
    arena = PinnedArena(stream, max_buffers=3)
    tensors = [upload(arena, value) for value in range(8)]
    assert arena.num_buffers == stream.host_allocations == 3
    assert stream.waits == 5
    stream.advance()
    assert received(tensors) == [{value} for value in range(8)]


def test_a_fill_that_raises_loses_no_buffer():
    stream = FakeStream()
    arena = PinnedArena(stream)

    def fails(host):
        raise KeyError

    with pytest.raises(KeyError):
        arena.upload(10, fails)
    upload(arena, 1)
    assert stream.host_allocations == arena.num_buffers == len(stream.queue) == 1


def test_a_target_is_copied_into():
    stream = FakeStream()
    arena = PinnedArena(stream)
    target = torch.zeros(4, dtype=torch.int32)
    assert arena.upload(4, lambda host: host.fill(5), target) is target
    assert not target.any()
    stream.advance()
    assert set(target.tolist()) == {5}


def test_nothing_is_not_copied():
    stream = FakeStream()
    assert upload(PinnedArena(stream), 0, num_words=0).numel() == 0
    assert not stream.queue


def test_threads_do_not_share_a_buffer():
    stream = FakeStream()
    arena = PinnedArena(stream)
    together = threading.Barrier(4)
    found = {}

    def work(value):
        def fill(host):
            together.wait()  # all four fill at the same time
            host.fill(value)

        found[value] = arena.upload(64, fill)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.advance()
    assert received([found[value] for value in range(4)]) == [{0}, {1}, {2}, {3}]


def test_on_the_cpu_the_tensor_is_the_host_buffer():
    arena = arena_for(torch.device("cpu"))
    seen = []
    tensor = arena.upload(8, seen.append)
    assert tensor.data_ptr() == seen[0].ctypes.data
    assert arena.upload(8, seen.append, tensor) is tensor
    assert seen[1].ctypes.data == tensor.data_ptr()
    other = arena.upload(8, seen.append)
    assert other.data_ptr() != tensor.data_ptr()
    assert arena.num_buffers == 0


def test_one_arena_per_device():
    assert arena_for(torch.device("cpu")) is arena_for(torch.device("cpu"))
