"""OpenAI's routes under /v1: fields in, jobs out; chunks in, their shapes out."""
