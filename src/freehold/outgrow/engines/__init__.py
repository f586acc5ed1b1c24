"""The engines: a file each for its plan, and one for how it speaks where that is long; engines that run already."""
