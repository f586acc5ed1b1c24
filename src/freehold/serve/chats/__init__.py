"""Chats on disk, for the page and the terminal: one file a chat, lines appended, branches kept."""
