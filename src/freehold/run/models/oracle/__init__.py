"""The oracle: the forward passes in plain NumPy, which judge the native engine."""
