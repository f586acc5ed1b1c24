"""Reinforcement: samples of our engine, rewards in a process of their own, policy gradients on the float path.

prompts -> verifier, attack -> sampler -> scores -> objective -> trainee -> the next step's adapter.
"""
