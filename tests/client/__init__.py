"""The Python client, against a scripted peer, a real service, and a network that breaks."""
