"""Lets a torchvision built for CUDA be imported beside a torch built for CPUs.

vLLM's Qwen3.5 imports torchvision and uses nothing of it for text. torchvision registers fakes for
operators which its library would define, had it loaded; they are declared on its first import.
"""

import importlib.abc
import sys

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _OPERATORS:
                if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                    library.define(schema)
            torch._gdn_dispatch_test_library = library  # lives as long as the process
        return None


sys.meta_path.insert(0, _DeclareOperators())
