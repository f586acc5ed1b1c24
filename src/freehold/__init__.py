"""Own the language models you use: load one, chat with it, stream, score."""
