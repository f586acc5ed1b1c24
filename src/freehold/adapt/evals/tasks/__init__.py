"""The tasks of an evaluation, by the name that `freehold eval --data` takes: one file each, all of them EvalTasks."""
