"""Engine processes: the wire, their lives and deaths, and the streams that outlive them."""
