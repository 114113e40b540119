"""The NVIDIA backend of ``gdn_dispatch``; ``plugin`` is what the entry point names."""
