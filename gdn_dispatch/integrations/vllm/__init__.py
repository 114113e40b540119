"""Gated DeltaNet layers of vLLM, run by whichever backend fits.

Installed beside vLLM, this package is a general plugin of it: vLLM calls ``register`` in each of
its processes, and the layers of Qwen3-Next and Qwen3.5 run through ``gdn_dispatch.gdn_attention``
on the engine's state pools. Nothing has to be called by hand, and nothing of vLLM is patched: a
layer class, which names its metadata builder, is registered where vLLM looks for one.

What happened, and what served the steps of this process::

    from gdn_dispatch.integrations import vllm as gdn

    gdn.status()    # registered or not, and why
    gdn.counters()  # steps by what they held, layer calls

``GDN_DISPATCH_DISABLE=vllm`` leaves vLLM its own layers. docs/vllm.md says what is covered.
"""

from gdn_dispatch.integrations.vllm.observability import counters
from gdn_dispatch.integrations.vllm.registration import Status, register, status

__all__ = ["Status", "counters", "register", "status"]
