"""Where adapters to FLA, FlashInfer and FlashQLA will live, one module each. None yet.

An adapter converts layouts and gates in one file, and nowhere else.
"""
