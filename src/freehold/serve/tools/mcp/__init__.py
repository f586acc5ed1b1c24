"""A client of MCP servers: configured by the owner alone, started apart, asked about before each call."""
