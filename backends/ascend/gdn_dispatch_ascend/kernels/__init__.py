"""Kernels of this package for triton-ascend, and the host functions that launch them.

    calls     calls.py                          a layer; the recurrence alone
    host      conv.py  prefill.py  steps.py     launches: tasks, grids, strides
    kernels   *_kernel.py                       @triton.jit
    data      rows.py  tiling.py                a dense batch; cores, and what a task holds

Chunk tables from lengths on the device are ``metadata.device_tables``. Every grid has one axis and
at most as many programs as the device has cores of the kind the kernel runs on; a program takes
every ``cores``-th task. ``docs/ascend_kernels.md`` says what the hardware asks of a kernel and how
these answer.
"""
