"""What a recipe would do on machines that are not here: its programs, compiled ahead of time."""
