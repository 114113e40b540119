"""Whether this machine can run the backend: is what it needs installed, is the device there?"""

from __future__ import annotations

from gdn_dispatch import Available, Unavailable


def probe_machine() -> Available | Unavailable:
    """NumPy is all it needs. The reason of an ``Unavailable`` ends in what would help."""
    try:
        import numpy
    except ImportError as error:
        return Unavailable(f"numpy cannot be imported ({error}): pip install numpy")
    return Available(f"numpy {numpy.__version__}")
