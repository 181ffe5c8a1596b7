"""A page in Chromium, and what its script told."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from playwright.async_api import ConsoleMessage, Error, Page

from tests.browser.site import Site

TIMEOUT_S = 40


class Tab:
    """One page, and what its script told."""

    def __init__(self, page: Page, site: Site) -> None:
        """Listen to ``page``."""
        self.page = page
        self.noise: list[str] = []
        """What came up on the console, errors too."""
        self.errors: list[str] = []
        """What was raised and not caught."""
        self.seen: list[dict[str, Any]] = []
        self._site = site
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def open(self, path: str = "/") -> "Tab":
        """Load the page."""
        self.page.on("console", self._note)
        self.page.on("pageerror", self._note_error)
        await self.page.expose_binding("tell", lambda _, item: self._told.put_nowait(item))
        await self.page.goto(self._site.url + path)
        return self

    async def watch(self, job_id: str, options: str = "{}", watch_options: str = "") -> None:
        """Follow a job with the module; the page tells each event."""
        await self.page.evaluate(
            f"""async (jobId) => {{
              const {{ AsyncBG }} = await import("/bg/asyncbg.js");
              globalThis.bg ??= new AsyncBG({{ retryMs: 50, pollMs: 50, ...{options} }});
              const watch = (globalThis.watching = bg.watch(jobId, {{ onEvent: tell, {watch_options} }}));
              watch.done.then((event) => tell({{ type: "done", event }}), (error) => tell({{ type: "failed", status: error.status, message: error.message }}));
            }}""",  # noqa: E501
            job_id,
        )

    async def until(self, *types: str, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """What is told next of one of these types; everything on the way is in ``seen``."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    item = await self._told.get()
                    self.seen.append(item)
                    if item["type"] in types and where(item):
                        return item
        except TimeoutError:
            told = [(item["type"], item.get("id"), item.get("data")) for item in self.seen]
            asked = [(r.method, r.path, r.query, r.cursor, r.status, r.is_open) for r in self._site.requests[-20:]]
            raise AssertionError(f"no {types} came; told: {told}; asked: {asked}; console: {self.noise}") from None

    async def progress(self, current: int) -> dict[str, Any]:
        """The report of so much progress."""
        return await self.until("job.progress", where=lambda item: item["data"]["current"] == current)

    def stored(self, job_id: str) -> list[str]:
        """The ids of the stored events of a job, as they were told."""
        return [item["id"] for item in self.seen if item.get("subject") == job_id and item.get("id")]

    def _note(self, message: ConsoleMessage) -> None:
        # The browser itself writes there what the network answered; scripts keep quiet.
        if not message.text.startswith("Failed to load resource"):
            self.noise.append(message.text)

    def _note_error(self, error: Error) -> None:
        self.noise.append(str(error))
        self.errors.append(str(error))


async def until(condition: Callable[[], bool], otherwise: Callable[[], Sequence[Any] | str]) -> None:
    """Wait for something that the browser brings about; ``otherwise`` is what to show if it does not."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - seen from outside, there is no event to await
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it did not happen: {otherwise()}") from None
