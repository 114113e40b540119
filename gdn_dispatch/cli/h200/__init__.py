"""``gdn-dispatch bench --suite h200``: our kernels and their peers on an NVIDIA GPU.

suite      what is run, in which order, and what is kept of it
shapes     the published prefill shapes (prefill.csv), and those of decoding
inputs     random inputs, and the oracle's answer to them (oracle)
prefill, layer, decode    the contestants of each part
contest, timing    who takes part, and how they are timed in turn
report     table and plots
"""
