"""A NumPy backend for gdn-dispatch; the entry point is ``gdn_dispatch_numpy.plugin``."""
