"""What every wing uses: types, settings, the machine, dated facts, children that strangers' work runs in.

Imports no other wing.
"""
