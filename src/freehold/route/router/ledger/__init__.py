"""What was asked, answered and paid: one row a request, in one SQLite file."""
