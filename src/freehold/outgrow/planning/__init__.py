"""From what is asked for to a plan: facts of a model, sizes, words of a command line, what does not fit."""
