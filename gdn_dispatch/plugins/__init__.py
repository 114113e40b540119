"""Backends as plugins: found by entry point, inspected, loaded guarded, probed, registered."""
