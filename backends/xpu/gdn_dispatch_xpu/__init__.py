"""The Intel XPU backend of ``gdn_dispatch``; ``plugin`` is what the entry point names."""
