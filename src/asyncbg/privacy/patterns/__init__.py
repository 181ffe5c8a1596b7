"""The pattern net: what looks personal or secret in free text."""
