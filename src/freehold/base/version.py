"""The version of this package, for modules that print it; `freehold.__version__` is the public name.

Imports nothing, so that a module that prints the version does not depend on the public API, which imports the modules.
"""

__version__ = "0.1.0"
