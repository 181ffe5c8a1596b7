"""Patterns of personal data and secrets in free text."""
