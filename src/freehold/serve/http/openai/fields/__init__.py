"""The fields of OpenAI's generating requests: types, ranges, and how they become a Job."""
