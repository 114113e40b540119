"""Where the Triton-Ascend kernels will live; each module opens with its mathematics. None yet."""
