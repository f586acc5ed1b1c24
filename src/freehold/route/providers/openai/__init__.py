"""OpenAI's chat completions and embeddings, and what others who speak them inherit."""
