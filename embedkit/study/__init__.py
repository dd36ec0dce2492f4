"""`embedkit sweep` and `embedkit fit`: layers, poolings and poolers chosen by the user's labels."""
