"""The compiled kernels from Python: what is loaded, and calls laid out for its C interface."""
