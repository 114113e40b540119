"""The tests of the kit, in groups; ``GDNBackendTests`` has them all.

A group is a class of tests about one subject. Tests take the backend under test as ``subject`` and
say with ``needs`` what a backend must declare to be held to them.
"""

from __future__ import annotations

from gdn_dispatch.testing.conformance.accuracy import AccuracyTests
from gdn_dispatch.testing.conformance.checkpoints import CheckpointTests
from gdn_dispatch.testing.conformance.compiling import CompileTests
from gdn_dispatch.testing.conformance.gradients import GradientTests
from gdn_dispatch.testing.conformance.layers import LayerTests
from gdn_dispatch.testing.conformance.memory import MemoryTests
from gdn_dispatch.testing.conformance.metadata import MetadataTests
from gdn_dispatch.testing.conformance.refusals import RefusalTests
from gdn_dispatch.testing.conformance.sequences import SequenceTests
from gdn_dispatch.testing.conformance.serving import ServingTests
from gdn_dispatch.testing.conformance.speculative import SpeculativeTests
from gdn_dispatch.testing.conformance.states import StateTests

__all__ = ["GDNBackendTests"]


class GDNBackendTests(
    AccuracyTests,
    SequenceTests,
    StateTests,
    MemoryTests,
    LayerTests,
    SpeculativeTests,
    CheckpointTests,
    MetadataTests,
    RefusalTests,
    GradientTests,
    CompileTests,
    ServingTests,
):
    """Everything a backend is held to; see ``Conformance`` for what a subclass may set."""
