"""Where the adapter to vllm-xpu-kernels' whole-layer operator will live. None yet.

An adapter converts layouts and gates in one file, and nowhere else.
"""
