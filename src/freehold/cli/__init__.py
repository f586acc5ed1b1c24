"""The command line: one file per verb, dispatched lazily by main.py. stdout is data, stderr is talk."""
