"""From torch to NumPy and back: the only place where a dtype changes.

NumPy has no bfloat16, so tensors are converted on the way in. Converting them to float64 leaves one
rounding, on the way out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def to_numpy(x: torch.Tensor) -> Array:
    """The values of ``x`` in float64, to be read only: the memory may be the caller's."""
    array: Array = x.to(torch.float64).numpy()
    return array


def store(target: torch.Tensor, values: Array) -> None:
    """Write ``values`` into ``target``: a view of the caller's memory, any strides, any dtype."""
    target.copy_(torch.from_numpy(values))
