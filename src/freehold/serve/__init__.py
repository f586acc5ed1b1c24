"""Models for every client: engine processes, HTTP, chats, tools.

Imports all wings but cli.
"""
