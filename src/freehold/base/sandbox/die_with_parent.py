"""Runs a module as a program that ends with its parent process.

Started as `python -m freehold.base.sandbox.die_with_parent MODULE ARGUMENTS... PARENT`, where PARENT is the parent's
process id. For programs that do not call `children.follow_parent` themselves.
"""

from __future__ import annotations

import runpy
import sys

from freehold.base.sandbox.children import follow_parent


def main() -> None:
    """Follow the parent, then become the module."""
    follow_parent(int(sys.argv.pop()))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
