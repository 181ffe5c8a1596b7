"""asyncbg.testing, tested as its users use it, and by itself."""
