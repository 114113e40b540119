"""What ``meta.py`` is made of: more than block sizes, because Ascend's operators take more.

tables.py                        the tensors by Ascend's names, with their formulas
arguments.py  host_arguments.py  what operators take: device tensors, or Python ints
device_tables.py                 the tables out of lengths that only the device knows, into a pool
device_tables_torch.py           by tensor operations
device_tables_triton.py          by the kernels of device_tables_kernel.py
"""
