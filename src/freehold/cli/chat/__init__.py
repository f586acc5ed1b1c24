"""The terminal chat: input, Markdown output, sessions on disk."""
