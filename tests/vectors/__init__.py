"""References made by other implementations, and the scripts that make them again.

`weights.py` and `files.py` need NumPy (and the `gguf` package) only and are imported by tests;
`make.py` and `make_greedy.py` need torch and transformers and are run by hand, from the repository's root:

    python -m tests.vectors.make            # golden/<family>.npz
    python -m tests.vectors.make_towers     # the same of models that see, with what they make of pictures
    python -m tests.vectors.make_ears       # the same of sounds and chats: ears.py
    python -m tests.vectors.make_eyes       # the same of whole pictures and chats: a row of eyes.py each
    python -m tests.vectors.convert         # the same models by llama.cpp's own converter
    python -m tests.vectors.check_families  # all forms against golden/, and llama.cpp beside: the table of models
    python -m tests.vectors.check_towers    # tiny towers as GGUF against those of the converter
    python -m tests.vectors.make_greedy     # greedy/<model>.json
"""
