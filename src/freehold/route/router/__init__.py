"""The gateway: which of owned and rented models answers a request, and the ledger that says why and for how much."""
