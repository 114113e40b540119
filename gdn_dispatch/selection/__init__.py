"""Which backend runs a call: the choice, the pure resolution with its trace, the bound function."""

from gdn_dispatch.selection.resolver import Candidate, Choice, Selection, resolve

__all__ = ["Candidate", "Choice", "Selection", "resolve"]
