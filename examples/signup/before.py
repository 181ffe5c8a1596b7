"""Sign up and get a welcome, a record in the audit log and a place in the search index, after the response."""

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException

app = FastAPI(title="Signup")

members: set[str] = set()


async def send_welcome(email: str, *, language: str = "en") -> None:
    """Write to the new member; an `async def` task."""
    await asyncio.sleep(0.1)  # the mail server takes its time
    write("outbox.txt", f"welcome ({language}) to {email}")


def index_member(email: str) -> None:
    """Make the new member findable; a plain `def` task."""
    write("index.txt", email)


def write(name: str, line: str) -> None:
    """Append a line to a file in the working directory."""
    with Path(name).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def audit(email: str, background_tasks: BackgroundTasks) -> None:
    """A dependency with background work of its own."""
    background_tasks.add_task(write, "audit.txt", f"signup of {email}")


@app.post("/signup", dependencies=[Depends(audit)])
async def signup(email: str, background_tasks: BackgroundTasks, language: str = "en") -> dict[str, str]:
    """Take a new member; a known one is refused, and then nothing happens in the background."""
    background_tasks.add_task(send_welcome, email, language=language)
    background_tasks.add_task(index_member, email)
    if email in members:
        raise HTTPException(409, "there is such a member already")
    members.add(email)
    return {"message": "welcome"}


def member(email: str) -> str:
    """The member of that address."""
    if email not in members:
        raise HTTPException(404, "there is no such member")
    return email


@app.post("/members/{email}/reminder")
async def remind(email: Annotated[str, Depends(member)], background_tasks: BackgroundTasks) -> dict[str, str]:
    """Write again."""
    background_tasks.add_task(send_welcome, email)
    return {"message": "on its way"}
