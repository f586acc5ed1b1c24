"""The console: a page at `/` for chats, models, engine and ledger, and the routes that only the page needs."""
