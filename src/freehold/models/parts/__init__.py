"""The parts that layers are made of: each declares its weights in both file formats and composes its forward pass."""
