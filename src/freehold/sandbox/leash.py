"""Runs a module as a program that ends with its parent: python -m freehold.sandbox.leash MODULE ARGUMENTS... PARENT.

For programs that know nothing of `children.spawn`, whose last argument is the parent's process id.
Path: cli/clients/compat -> spawn -> leash -> the module
"""

from __future__ import annotations

import runpy
import sys

from freehold.sandbox.children import follow_parent


def main() -> None:
    """Follow the parent, then become the module."""
    follow_parent(int(sys.argv.pop()))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
