"""Pictures that strangers send, decoded in processes that can be killed.

Path: opening.open_picture -> decoders.Decoders -> child.main -> pillow.PictureFile
"""
