"""Gemini's native API (generateContent) as a provider's wire."""
