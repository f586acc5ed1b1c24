"""What teaching by examples needs around its steps: samples, text of the base's own, checks before, examinations after."""
