"""The built-in backend: pure torch, on the CPU; also the readable reference."""
