"""The kernels of the torch backend; each module states its mathematics."""
