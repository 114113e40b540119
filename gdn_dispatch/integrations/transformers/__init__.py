"""Gated DeltaNet layers of Hugging Face transformers, run by whichever backend fits.

For every model made from now on::

    from gdn_dispatch.integrations import transformers as gdn

    gdn.enable()
    model = AutoModelForCausalLM.from_pretrained(...)

For one model that exists::

    gdn.inject(model)  # eject(model) undoes it

Packed sequences, kept apart in the convolution and in the recurrence::

    model(input_ids, **gdn.packed([17, 4, 240], device=model.device))

Covered is every model of the installed transformers whose layer calls the functions of
``discovery.RULES`` (Qwen3-Next, Qwen3.5, OLMo-Hybrid, ...); ``supported_models()`` lists them. What
is replaced is what those two and the causal convolution's two names mean inside the layer's
``forward``, in a copy of the function: transformers' modules and classes stay as they are.
``torch.compile``, training and gradient checkpointing work as before.

Two things to know. The copy takes the other names it uses from transformers as they are when the
layer is first adapted. And hub kernels (``use_kernels=True``) for a whole layer still replace
that layer; those for single functions are not reached, the backend is chosen here.
"""

from gdn_dispatch.integrations.transformers.injection import eject, inject
from gdn_dispatch.integrations.transformers.packing import packed
from gdn_dispatch.integrations.transformers.registration import (
    ModelStatus,
    Status,
    disable,
    enable,
    enabled,
    status,
    supported_models,
)

__all__ = [
    "ModelStatus",
    "Status",
    "disable",
    "eject",
    "enable",
    "enabled",
    "inject",
    "packed",
    "status",
    "supported_models",
]
