"""What a picture may have and take: numbers that both ends of the socket to a decoder know."""

MAX_BYTES = 10 << 20  # of the file
MAX_PIXELS = 64 << 20  # a phone's picture of "64 megapixels" has 64.4 million
MAX_SIDE = 32_768  # pixels
MAX_PLANNED = 64 << 20  # pixels of all arrays that a plan asks for, and of those on the way to them
SECONDS = 10.0  # of processor, for one picture
MEMORY = 1536 << 20  # bytes of addresses, for one picture
HINT = "make the picture smaller, or save it as PNG or JPEG"

# One byte that a process sends once it has started.
READY, NO_PILLOW = b"+", b"-"
# How it is started: it stays, and forks for each picture; or it opens one and ends.
STAYS, ONCE = "stays", "once"
OUT_OF_MEMORY = 3  # its exit status where memory did not suffice
