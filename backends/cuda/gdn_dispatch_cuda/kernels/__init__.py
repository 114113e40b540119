"""Where the Triton kernels for NVIDIA GPUs will live; each opens with its mathematics. None yet."""
