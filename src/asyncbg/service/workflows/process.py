"""Process something in two slow steps, followed by a clean-up that runs even if a step failed."""

import math
from typing import Annotated

import anyio
from fastapi import APIRouter, Path, Response

from asyncbg import AsyncBG, BackgroundTasks, Personal, Progress, current_job
from asyncbg.service.inputs import Line
from asyncbg.service.integrations.workspace import Workspace
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.settings import DemoSettings
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.schemas import Accepted

_REPORTS_PER_S = 8

Name = Annotated[Line, Personal("name")]


def process_workflow(bg: AsyncBG, *, workspace: Workspace, settings: DemoSettings) -> APIRouter:
    """Return ``POST /process/{name}``; register ``slow_task_1``, ``slow_task_2`` and ``cleanup_task``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="slow_task_1")
    async def slow_task_1(name: Name, progress: Progress = Progress()) -> dict[str, int]:
        """Do two units of slow work."""
        return await _work(workspace, name, progress, steps=2, step_s=settings.step_s)

    @bg.task(name="slow_task_2")
    async def slow_task_2(name: Name, progress: Progress = Progress()) -> dict[str, int]:
        """Do three units of slow work."""
        return await _work(workspace, name, progress, steps=3, step_s=settings.step_s)

    @bg.task(name="cleanup_task", retries=3, timeout=60)
    async def cleanup_task(name: Name) -> dict[str, int]:
        """Remove the working files of the batch."""
        job = current_job()
        await job.require_lease()
        return {"files_removed": await workspace.remove(job.batch)}

    @router.post("/process/{name}", name="process", **accepts())
    async def process_route(
        name: Annotated[Name, Path(examples=["report"])], background_tasks: BackgroundTasks, response: Response
    ) -> Accepted:
        """Accept a process: two slow steps in sequence, then a clean-up that runs even if a step failed."""
        jobs = [background_tasks.add_task(task, name) for task in (slow_task_1, slow_task_2, cleanup_task)]
        return await accept("Processing started in the background", jobs, background_tasks, response)

    return router


async def _work(workspace: Workspace, name: str, progress: Progress, *, steps: int, step_s: float) -> dict[str, int]:
    """Sleep ``steps`` times ``step_s`` seconds, report progress several times a second, write a working file."""
    parts = max(1, math.ceil(step_s * _REPORTS_PER_S))
    for step in range(steps):
        for part in range(parts):
            progress.set(step + part / parts, total=steps, unit="steps", message=f"step {step + 1} of {steps}")
            await anyio.sleep(step_s / parts)
    progress.set(steps, total=steps, message=f"{steps} steps done")
    job = current_job()
    await job.require_lease()
    await workspace.write(job.batch, job.task, f"{name}: {steps} steps\n")
    return {"steps": steps}
