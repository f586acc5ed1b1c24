"""OpenAI's Responses API: items in, items out, streamed as events or kept for the next turn."""
