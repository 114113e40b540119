"""The native CPU backend of ``gdn_dispatch``; ``plugin`` is what the entry point names."""
