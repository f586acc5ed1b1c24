"""What a chat template may use: numbers that both ends of the socket to the renderer know."""

MAX_SOURCE = 1_000_000  # characters; the largest template in use has some 20,000
MAX_TAGS = 10_000  # compiling takes some 0.1 ms a tag
MAX_SECONDS = 2.0  # of processor, for one render or for all probes of a template
MAX_TEXT = 16_000_000  # characters of one string; at least four times what the caller passes in
MAX_ITEMS = 1_000_000  # of a list built by an operator, and the largest number a filter or method takes
MAX_INT_BITS = 4096
MAX_TIME_FORMAT = 200  # characters
MEMORY = 512 << 20  # bytes of addresses; interpreter and Jinja map some 60 MB
_MEMORY_PER_BYTE = 48  # of a job: up to 4 bytes each, decoded, rendered, joined, encoded and sent
TOO_LARGE = "the chat template needs more memory than it may have"
HINT = "use another template, or --raw"


def allowed_memory(job: int) -> int:
    """Return the bytes a renderer may take for a job of `job` bytes."""
    return MEMORY + _MEMORY_PER_BYTE * job
