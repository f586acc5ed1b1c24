"""The benchmarks whose published results the catalogue holds, and what each measures.

Knows names; knows no model, no result and no task (advisor/quality.py says what a task asks for).
Path: schema.lint -> BENCHMARKS.
"""

from __future__ import annotations

# name -> what a model is asked, and what is counted; all in per cent
BENCHMARKS = {
    "aider_polyglot": "exercises in six programming languages by edits to files, solved after two tries",
    "aime24": "competition mathematics of 2024, 30 problems with whole numbers as answers",
    "aime25": "competition mathematics of 2025, 30 problems with whole numbers as answers",
    "bfcl": "calls of functions, chosen and filled in rightly (version 3 unless the setting says otherwise)",
    "bigcodebench": "Python tasks that need several libraries, tests passed",
    "gpqa": "questions of graduate biology, physics and chemistry, multiple choice",
    "gpqa_diamond": "the 198 questions of gpqa on which experts agree",
    "gsm8k": "school arithmetic told in words",
    "humaneval": "164 Python functions from their docstrings, tests passed at the first try",
    "humaneval_fim": "lines of those functions taken out and filled in from both sides",
    "humaneval_plus": "humaneval with eighty times the tests",
    "ifeval": "instructions whose keeping a program can check",
    "livecodebench": "contest programs newer than the training data, of the dates or version in the setting",
    "math": "competition mathematics of secondary school, 5,000 problems",
    "math_500": "500 problems out of math",
    "mbpp": "short Python functions from one sentence, tests passed at the first try",
    "mbpp_plus": "mbpp with 35 times the tests",
    "mgsm": "250 problems of gsm8k in ten or eleven languages",
    "mmlu": "57 subjects from school to profession, four choices",
    "mmlu_pro": "14 subjects, harder and with ten choices",
    "mmlu_redux": "mmlu with its wrong questions mended",
    "mmmlu": "mmlu translated by people into 14 languages",
    "multipl_e": "humaneval translated into other programming languages, tests passed",
    "ruler": "finding, tracing and counting in long texts of the length in the setting",
    "swe_bench_verified": "500 issues of Python projects mended in their repository, tests passed",
}
