"""Other proxies' configurations, turned into gateway.toml: what fits, and a list of what does not."""
