"""How answers are worded, tabulated and drawn: for advise, cost, show and models."""
