"""Where the compiled CPU kernels will live; each module opens with its mathematics. None yet."""
