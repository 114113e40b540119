"""Kernels of this package for triton-ascend, and the host functions that launch them.

    host      calls.py  rule.py                     a layer; the recurrence alone
              conv.py  prefill.py  steps.py         launches: tasks, grids, strides
              chunk_meta.py                         chunk tables from lengths on the device
    kernels   *_kernel.py                           @triton.jit
    data      tiling.py                             cores, and how much of a task is held at a time

Every grid has one axis and at most as many programs as the device has cores of the kind the kernel
runs on; a program takes every ``cores``-th task. ``kernels.md`` beside this package says what the
hardware asks of a kernel and how each of them answers.
"""
