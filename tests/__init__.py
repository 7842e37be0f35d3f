"""Tests: one file for each claim about a part, what they share in tests/support/."""
