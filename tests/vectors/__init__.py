"""References made by other implementations, and the scripts that make them again.

`weights.py` and `files.py` need NumPy (and the `gguf` package) only and are imported by tests;
`make.py` and `make_greedy.py` need torch and transformers and are run by hand, from the repository's root:

    python -m tests.vectors.make            # golden/<family>.npz
    python -m tests.vectors.check_gguf      # llama.cpp reads our GGUF files and agrees with golden/
    python -m tests.vectors.make_greedy     # greedy/<model>.json
"""
