"""The papers' networks, one file a paper: torch and the standard library only."""
