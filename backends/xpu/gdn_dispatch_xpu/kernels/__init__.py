"""Where our own kernels for Intel GPUs will live; each opens with its mathematics. None yet."""
