"""Portable Triton kernels, which the packages of devices configure.

Nothing here chooses a configuration, asks for a device or keeps a cache: a host function takes
tensors and a configuration (``config.py``), allocates what it returns, and launches. Importing
this package imports no Triton; importing one of its kernel modules does.

    calls     attention.py  rule.py           a layer; the recurrence alone (dense.py: no plan)
    host      conv.py  prefill.py  steps.py   launches, grids, strides
              segments.py  tiles.py           long rows in pieces; descriptors of chunks
              specialized.py                  prefill on Hopper, by kernels in Gluon
              device_meta.py                  chunk tables from lengths on the device
    kernels   *_kernel.py                     @triton.jit; specialized_*: @gluon.jit
    data      rows.py  rule_tensors.py        a group of rows; what a rule reads and writes
              config.py  capture.py           a launch; whether it is captured
              specialized_config.py           whether Gluon is there, and how it is launched
"""
