"""BackgroundTasks as FastAPI's users know them, and what they keep here."""
