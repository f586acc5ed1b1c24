"""Helpers of the verbs around a running server: find it, announce it, log it, install it as a service."""
