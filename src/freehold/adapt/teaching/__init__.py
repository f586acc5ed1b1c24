"""What teaching by examples needs beside its steps: samples, replay, checks before, examinations after."""
