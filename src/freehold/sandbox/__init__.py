"""Work on what strangers wrote, in processes that can be killed: children.py starts and ends them."""
