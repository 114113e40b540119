"""The engine's block size, looked at when it is final and refused where a backend cannot use it.

vLLM settles on a block size after the model has been loaded (``update_block_size_for_backend`` of
its platform) and asks every layer for its KV cache spec next. On XPU the platform itself rounds to
a multiple of 64 where a layer's attention backend is called ``GDN_ATTN``, as ours is; elsewhere
there is no seam through which a layer could ask for a multiple.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.plan.block_pages import up_to
from gdn_dispatch.selection.dispatch import list_backends

if TYPE_CHECKING:
    from gdn_dispatch.selection.resolver import Selection

__all__ = ["check_block_size"]


def check_block_size(selection: Selection, cache_config: Any) -> None:
    """Compare ``cache_config``'s block size with what the chosen backend asks for.

    Args:
        selection: The backend that serves the engine.
        cache_config: vLLM's; ``block_size`` and ``mamba_block_size`` in tokens, both final.

    Raises:
        IntegrationError: A block is no multiple of ``BackendInfo.block_size_multiple``; the message
            has the value to pass.
    """
    multiple = next(
        (status.info.block_size_multiple for status in list_backends()
         if status.name == selection.chosen and status.info is not None),
        1,
    )  # fmt: skip
    sizes = {"block_size": int(cache_config.block_size)}
    if cache_config.mamba_cache_mode == "align":  # states are kept on its multiples
        sizes["mamba_block_size"] = int(cache_config.mamba_block_size)
    for name, size in sizes.items():
        if size % multiple:
            raise IntegrationError(
                f"vLLM's {name} is {size} tokens; the backend {selection.chosen!r} needs a "
                f"multiple of {multiple}. Pass --block-size {up_to(size, multiple)}; "
                f"`gdn-dispatch blocksize MODEL --backend {selection.chosen}` prints how block "
                "sizes come about"
            )
