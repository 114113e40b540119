"""Portable Triton kernels, which the packages of devices configure.

Nothing here chooses a configuration, asks for a device or keeps a cache: a host function takes
tensors and a configuration (``config.py``), allocates what it returns, and launches. Importing
this package imports no Triton; importing one of its kernel modules does.

    layer     attention.py                    rule.py
    host      conv.py  prefill.py  steps.py   launches, grids, strides
    kernels   conv_*_kernel.py …              @triton.jit
    data      rows.py  config.py              what a group of rows and a launch consist of
"""
