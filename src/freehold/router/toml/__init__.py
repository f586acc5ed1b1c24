"""How gateway.toml is read: where each key stands, what its value may be, and every mistake at once."""
