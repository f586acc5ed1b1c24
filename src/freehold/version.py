"""The version of this package, for rooms that tell it; `freehold.__version__` is the public name.

Imports nothing, so that a room that tells the version does not depend on the public API, which names the rooms.
"""

__version__ = "0.1.0"
