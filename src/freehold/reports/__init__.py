"""What `advise`, `fit`, `license`, `why` and `cost` find, as plain values: one maker for --json and the page."""
