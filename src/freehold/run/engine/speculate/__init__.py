"""Drafts of the next tokens, by n-gram lookup or a draft model, and how often they are accepted."""
