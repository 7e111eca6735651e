"""Notices: who is told, once, that a budget threshold was crossed."""
