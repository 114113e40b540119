"""Where adapters to torch_npu's and AscendC's operators will live, one module each. None yet.

An adapter converts layouts and gates in one file, and nowhere else.
"""
