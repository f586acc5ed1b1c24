"""Chats on disk: one file each, written by several programs."""
