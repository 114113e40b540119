"""Where adapters to other projects' CPU kernels will live, one module each. None yet.

An adapter converts layouts and gates in one file, and nowhere else.
"""
