"""Tabs that come and go, cuts, refusals and restarts in a random order: what is left was told everything, once."""

import random
from dataclasses import dataclass

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.site import Site
from tests.browser.tab import Tab, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAMES = "abcdef"
STEPS = 25
SEED = 2


@dataclass
class Storm:
    """A site, its jobs, and the tabs that are open now with what each watches."""

    site: Site
    open_tab: OpenTab
    rng: random.Random
    jobs: dict[str, str]
    tabs: list[tuple[Tab, list[str]]]

    async def step(self) -> None:
        """One thing that happens."""
        match self.rng.choice(["work", "work", "work", "cut", "cut", "refuse", "open", "close", "restart"]):
            case "work":
                for name in NAMES:
                    self.site.order(*(f"step {k}" if k % 3 else k for k in range(self.rng.randrange(15))), name=name)
            case "cut":
                self.site.proxy.cut()
            case "refuse":
                self.site.refuses_streams = not self.site.refuses_streams
            case "open" if len(self.tabs) < 4:
                await self.open()
            case "close" if len(self.tabs) > 1:
                tab, _ = self.tabs.pop(self.rng.randrange(len(self.tabs)))
                await tab.page.close()
            case "restart":
                await self.site.restart()

    async def open(self) -> None:
        """One more tab, on some of the jobs."""
        tab, mine = await self.open_tab(self.site), self.rng.sample(NAMES, 4)
        self.tabs.append((tab, mine))
        for name in mine:
            await tab.watch(self.jobs[name], "{types: ['thing.done'], patienceMs: 500}")

    async def calm(self) -> None:
        """The weather is fine again, and every tab hears it of each of its jobs."""
        self.site.refuses_streams = False
        for name in NAMES:
            self.site.order("calm", name=name)
        for tab, mine in self.tabs:
            waiting = {self.jobs[name] for name in mine}
            while waiting:
                told = await tab.until("thing.done", where=lambda item: item["data"]["name"] == "calm")
                waiting.discard(told["subject"])


async def test_a_storm_loses_nothing(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Each tab that is left was told the stored events of each of its jobs once and in order; then nothing is open."""
    site = await open_site(buffer=5)
    storm = Storm(site, open_tab, random.Random(SEED), {name: await site.submit(name) for name in NAMES}, [])
    await storm.open()
    await storm.open()

    for _ in range(STEPS):
        await storm.step()
    await storm.calm()
    for name in NAMES:
        site.order(None, name=name)

    for tab, mine in storm.tabs:
        for _ in mine:
            await tab.until("done")
        for name in mine:
            assert tab.stored(storm.jobs[name]) == await site.log(storm.jobs[name]), name
        assert not tab.noise
    await until(lambda: not site.open_streams, lambda: site.open_streams)
