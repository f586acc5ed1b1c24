"""Whether a router of prompts earns its place: measured against what needs no router, on tasks it has not seen."""
