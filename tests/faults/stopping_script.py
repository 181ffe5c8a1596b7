"""A script of one's own that serves with uvicorn's workers, or its reloader, and ends at a second signal."""

import argparse

import uvicorn

from asyncbg.signals import end_children_at_second_signal

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app-dir", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reload", action="store_true")
    chosen = parser.parse_args()
    end_children_at_second_signal()
    uvicorn.run(
        "stopping_app:app", app_dir=chosen.app_dir, port=chosen.port, workers=chosen.workers, reload=chosen.reload
    )
