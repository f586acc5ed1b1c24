"""How transformers is asked about pictures, one file a tower; run by make_eyes.py, never imported by tests."""
