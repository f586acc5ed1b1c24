"""Rented models: one file a provider's wire, and the one door by which a request leaves this machine."""
