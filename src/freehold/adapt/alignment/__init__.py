"""Preference training: pairs of answers to one prompt, and the loss that prefers the chosen one."""
