"""How gateway.toml is read: the place of each key, what its value may be, and every mistake at once."""
