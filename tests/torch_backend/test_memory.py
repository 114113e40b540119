"""Memory of large results comes back, and never while anything still reads it."""

import threading

import pytest
import torch

from gdn_dispatch.torch_backend.kernels import memory

CPU = torch.device("cpu")
LARGE = (memory._KEPT_FROM // 4 + 1000,)


@pytest.fixture(autouse=True)
def none_kept(monkeypatch):
    monkeypatch.setattr(memory, "_kept", [])


def place(tensor):
    return tensor.untyped_storage().data_ptr()


def large(elements=LARGE[0]):
    return memory.empty_result((elements,), torch.float32, CPU)


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (1 << 18,), (1 << 18, 3), LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_like_torchs(shape, dtype):
    found = memory.empty_result(shape, dtype, CPU)
    assert (found.shape, found.dtype, found.device) == (torch.Size(shape), dtype, CPU)
    assert found.is_contiguous()
    assert found.data_ptr() % 64 == 0
    found.fill_(1)


def test_an_output_is_contiguous_whatever_v_is():
    for v in (torch.zeros(3, 4, 5).transpose(0, 2), torch.zeros(1, 1, 1 << 19).expand(2, 3, -1)):
        found = memory.empty_output(v)
        assert found.shape == v.shape
        assert found.is_contiguous()
        assert found.dtype == v.dtype


def test_a_freed_block_is_used_again():
    first = large()
    at = place(first)
    del first
    assert place(large(LARGE[0] - 100)) == at
    assert len(memory._kept) == 1


def test_a_block_somebody_reads_is_not():
    first = large()
    view = first[10:20].fill_(7.0)
    at = place(first)
    del first
    second = large().zero_()
    assert place(second) != at
    assert view.tolist() == [7.0] * 10
    array = view.numpy()
    del view
    third = large().zero_()
    assert place(third) != at
    assert array.tolist() == [7.0] * 10


def test_a_block_is_not_used_for_much_less():
    first = large(3 * LARGE[0])
    at = place(first)
    del first
    assert place(large()) != at


def test_no_more_is_kept_than_said():
    tensors = [large() for _ in range(3 + memory._MOST_KEPT // memory._KEPT_FROM)]
    del tensors
    kept = sum(block.size for block in memory._kept)
    assert memory._MOST_KEPT - 2 * memory._KEPT_FROM < kept <= memory._MOST_KEPT
    del kept
    huge = memory._block(memory._MOST_KEPT + 1)  # never touched: no memory behind it
    memory._kept.clear()
    del huge
    assert memory._kept == []


def test_threads_never_share_a_block():
    torch.ones(1)
    clashes = []

    def work(number):
        for _ in range(20):
            tensor = large()
            tensor[:3] = number
            if tensor[:3].tolist() != [number] * 3:
                clashes.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
