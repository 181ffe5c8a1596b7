"""The engine's moving part: claims jobs, awaits their coroutines, settles their outcomes."""
