"""The convolution in place: every output, every new history, and nothing else in the pool."""

import pytest
import torch

from gdn_dispatch.testing.numbers import as_bytes, generator, relative_error
from gdn_dispatch.torch_backend.reference import reference_conv
from gdn_dispatch.triton_kernels.conv import ConvConfig, conv_prefill, conv_update
from tests.triton.step_inputs import CHUNK, CONV, DEVICE, rows_of, slots_of

D = 21
CLOSE = {torch.float32: 1e-6, torch.float16: 1e-3}


class Case:
    """Weights, a pool in which every slot has a history, and tokens that are rows of more."""

    def __init__(self, T, W, *, extra=0, slots=12, channels_last=False, bias=True,
                 dtype=torch.float32, activation="silu", weight_dtype=None):  # fmt: skip
        rng = generator(W)
        self.W, self.columns, self.activation = W, W - 1 + extra, activation
        self.weight = torch.randn(D, W, generator=rng).to(weight_dtype or dtype)
        self.bias = torch.randn(D, generator=rng).to(weight_dtype or dtype) if bias else None
        pages = torch.randn(slots, D * self.columns + 5, generator=rng).to(dtype)
        self.pages = pages.clone().to(DEVICE)
        self.pool, self.before = self.view(self.pages, channels_last), pages.clone()
        self.old = self.view(pages, channels_last).clone()
        self.channels_last = channels_last
        self.x = torch.randn(T, D + 4, generator=rng).to(dtype)[:, 2 : 2 + D]
        self.conv = torch.full((T, D), torch.nan, dtype=dtype, device=DEVICE)

    def view(self, pages, channels_last):
        lines = pages[:, : D * self.columns]
        if channels_last:
            return lines.unflatten(1, (self.columns, D)).transpose(1, 2)
        return lines.unflatten(1, (D, self.columns))

    def launch(self, function, rows, slots, config=CONV, **options):
        # moving compacts: the row stride has to be given again
        wide = torch.full((self.x.shape[0], D + 7), torch.nan, dtype=self.x.dtype, device=DEVICE)
        x = wide[:, 3 : 3 + D]
        x.copy_(self.x)
        bias = None if self.bias is None else self.bias.to(DEVICE)
        function(x, self.conv, rows, slots, self.pool, self.weight.to(DEVICE), bias,
                 self.activation, config, **options)  # fmt: skip

    def expect(self, start, length, read, first=0):
        """Outputs of a row, and [history | x]; checks the outputs."""
        history = None
        if read is not None:
            history = self.old[read, :, first : first + self.W - 1]
        expected, h = reference_conv(
            self.x[start : start + length], self.weight, self.bias, history, self.activation
        )
        got = self.conv[start : start + length].cpu()
        assert relative_error(got, expected) < CLOSE[self.x.dtype]
        return h

    def line(self, slot, columns):
        return self.pool[slot, :, :columns].cpu().t()

    def unchanged_but(self, lines):
        """Nothing of the pool is other than it was but these first columns of these slots."""
        before = self.view(self.before, self.channels_last)
        for slot, columns in lines.items():
            before[slot, :, :columns] = self.pool[slot, :, :columns].cpu()
        return torch.equal(as_bytes(self.before), as_bytes(self.pages.cpu()))


PREFILL = {
    "W=2": {"W": 2},
    "W=3, channels last": {"W": 3, "channels_last": True},
    "W=4, fp16": {"W": 4, "dtype": torch.float16, "weight_dtype": torch.float32},
    "W=4, wide line, no bias": {"W": 4, "extra": 2, "bias": False},
    "W=5, no activation": {"W": 5, "activation": None, "channels_last": True},
    "W=8": {"W": 8},
}


@pytest.mark.parametrize("name", PREFILL)
def test_prefill(name):
    """Rows of 1 to W tokens and around a tile's end; empties, padding, read and write apart."""
    W = PREFILL[name]["W"]
    lengths = [1, W - 1, 0, W, CHUNK + 1, 2 * CHUNK, W - 1, 3, CHUNK + W, 1]
    writes = [1, 2, 3, 4, 5, 6, 7, -1, 8, 9]
    reads = [1, 10, 3, 4, 5, -3, 11, 2, 8, 9]
    has = [True, True, True, False, True, True, True, True, True, True]
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    case = Case(ends[-1], slots=14, **PREFILL[name])
    case.x[ends[7] : ends[8]] = torch.nan
    checkpoints = [(4, CHUNK, 0), (5, CHUNK, 12), (5, 2 * CHUNK, 13), (7, 3, 1), (-1, 0, -1)]
    order = [3, 0, 1, 2, 4, 5, 6, 7, 8, 9]  # the group's rows among the step's
    by_number = lambda values: [values[order.index(s)] for s in range(10)]  # noqa: E731
    slots = slots_of(
        by_number(writes), by_number(reads), has=by_number(has),
        checkpoints=[(order[s] if s >= 0 else s, o, slot) for s, o, slot in checkpoints],
    )  # fmt: skip
    case.launch(conv_prefill, rows_of(lengths, sequences=order, chunk=CHUNK, tail=2), slots)
    lines = {}
    for row, length in enumerate(lengths):
        if writes[row] < 0 or not length:
            continue
        read = reads[row] if has[row] and reads[row] >= 0 else None
        h = case.expect(ends[row], length, read)
        kept = [(length, writes[row])] + [(o, s) for r, o, s in checkpoints if r == row]
        for end, slot in kept:
            lines[slot] = W - 1
            assert torch.equal(case.line(slot, W - 1), h[end : end + W - 1]), (row, end)
    assert case.unchanged_but(lines)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("W", [2, 3, 4, 5, 8])
def test_decode(W, channels_last):
    case = Case(7, W, channels_last=channels_last, extra=1)
    case.x[2] = case.x[6] = torch.nan
    #         own  apart  pads  zero  read pads  none  beyond the pool
    writes = [1, 2, 0, 4, 5, 6, 12]
    reads = [1, 8, 3, 4, 0, 6, 7]
    has = [True, True, True, False, True, True, True]
    table = torch.full((7, 9), 5, dtype=torch.int64, device=DEVICE)
    table[:, 0] = torch.tensor(writes)
    rows = rows_of([1, 1, 1, 1, 1, 0, 1], starts=list(range(7)), tail=1)
    slots = slots_of(table[:, :2], [[r, 99] for r in reads], has=has, pad_slot=0)
    case.launch(conv_update, rows, slots, ConvConfig(8, 1))
    for row, read in ((0, 1), (1, 8), (3, None), (4, None)):
        h = case.expect(row, 1, read)
        assert torch.equal(case.line(writes[row], W - 1), h[1:])
    assert case.unchanged_but({1: W - 1, 2: W - 1, 4: W - 1, 5: W - 1})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("W", [2, 3, 4, 5])
def test_drafts(W, channels_last):
    """Reads columns A-1 .. A+W-3 of column 0's line; leaves columns 0 .. W-3+len of it."""
    lengths, accepted, S = [4, 1, 3, 2, 4], [1, 4, 3, 2, 2], 4
    writes, reads = [1, 2, 3, -1, 5], [1, 2, 8, 4, 5]
    has = [True, True, True, True, False]
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    case = Case(ends[-1], W, extra=S - 1, channels_last=channels_last)
    case.x[ends[3] : ends[4]] = torch.nan
    columns = [[w, -1, 7, 9] for w in writes]
    slots = slots_of(columns, [[r, 7, -1, 9] for r in reads], has=has, accepted=accepted)
    case.launch(conv_update, rows_of(lengths, tail=1), slots, ConvConfig(16, 1), speculative=True)
    lines = {}
    for row, length in enumerate(lengths):
        if writes[row] >= 0:
            h = case.expect(ends[row], length, reads[row] if has[row] else None, accepted[row] - 1)
            lines[writes[row]] = W - 2 + length
            assert torch.equal(case.line(writes[row], W - 2 + length), h[1:])
    assert case.unchanged_but(lines)


def test_a_long_row_against_itself_in_pieces():
    """Tiles of one row, and the row token by token."""
    case = Case(3 * CHUNK + 5, 4)
    rows = rows_of([3 * CHUNK + 5], chunk=CHUNK)
    for config in (ConvConfig(32, 2, 16), ConvConfig(8, 1, 4)):
        case.launch(conv_prefill, rows, slots_of([1], [2]), config)
        h = case.expect(0, 3 * CHUNK + 5, 2)
        assert torch.equal(case.line(1, 3), h[-3:])
