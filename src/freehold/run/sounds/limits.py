"""What decoding a compressed recording may take: numbers that both ends of the socket to its process know."""

MEMORY = 1 << 30  # bytes of addresses, besides the recording's own
BASE_S, MIB_S, MOST_S = 10.0, 10.0, 600.0  # of processor: in any case, for each MiB, at most
WALL = 4.0  # times the processor's seconds on the clock, and START_S: a busy machine takes longer
START_S = 60.0
MAX_PIECE = 1 << 20  # samples of a message

# Kinds of a message, its first byte: a JSON object, or samples.
WORDS, SAMPLES = b"w", b"s"
OUT_OF_MEMORY = 3  # exit status where memory did not suffice
NO_DECODER = 4  # and where PyAV cannot be imported

# Demuxers of FFmpeg by the names of opening.py: no other is tried, so no playlist is one.
DEMUXERS = {
    "MP3": "mp3",
    "Ogg": "ogg",
    "MP4 or M4A": "mov",
    "WebM or Matroska": "matroska",
    "AAC": "aac",
    "CAF": "caf",
}
# Decoders of FFmpeg that a recording may use, and those of plain samples, which begin with "pcm_".
CODECS = (
    *("mp3float", "mp3", "mp2float", "mp2", "mp1float", "mp1", "vorbis", "opus", "libopus", "libvorbis"),
    *("aac", "alac", "flac"),
)


def seconds_for(size: int) -> float:
    """Return the seconds of processor that a recording of `size` bytes may take."""
    return min(MOST_S, BASE_S + MIB_S * size / (1 << 20))
