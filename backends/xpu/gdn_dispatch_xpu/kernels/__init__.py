"""How this package runs a call: which kernels, and in which configuration each is launched."""
