"""Distillation: a teacher's answers, kept or rejected, and a student that learns from them or from its own."""
