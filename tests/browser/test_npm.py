"""The folder of the module is an npm package as it is: in Node by its name, in a page by an import map."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from asyncbg.web.assets import STATIC
from tests.browser.conftest import OpenSite, OpenTab

pytestmark = pytest.mark.asyncio(loop_scope="session")

_SCRIPT = """
import * as all from "asyncbg";
import { AsyncBG } from "asyncbg";

const bg = new AsyncBG({ baseUrl: process.argv[2], pollMs: 50 });
const { id } = await bg.submit("obey", { name: "a" });
const types = [];
for await (const { type, polled } of bg.watch(id)) types.push([type, polled]);
const refusal = (() => { try { new AsyncBG() } catch (error) { return error.message } })();
console.log(JSON.stringify({ exports: Object.keys(all), types, result: (await bg.get(id)).result, refusal }));
"""


async def test_node_imports_it_by_name(open_site: OpenSite, tmp_path: Path) -> None:
    """Submits and follows a job; there is no EventSource, so by polling. Without a URL it says what to give."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing: apt-get install nodejs")
    site = await open_site()
    await site.submit()
    site.order(None, 1, None)
    (tmp_path / "node_modules").mkdir()
    shutil.copytree(STATIC, tmp_path / "node_modules" / "asyncbg")
    (tmp_path / "script.mjs").write_text(_SCRIPT)

    process = await asyncio.create_subprocess_exec(
        node,
        "script.mjs",
        f"{site.url}/bg",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert not stderr, stderr.decode()
    told = json.loads(stdout)

    assert told["exports"] == ["AsyncBG", "AsyncBGError", "watch"]
    assert told["types"][-1] == ["job.succeeded", True]
    assert told["result"] == "done"
    assert told["refusal"].startswith("this module was not loaded from a service: give its URL")


async def test_a_page_imports_it_by_name(open_site: OpenSite, open_tab: OpenTab) -> None:
    """An import map leads the name to the service."""
    site = await open_site()
    tab = await open_tab(site)
    await tab.page.route(
        f"{site.url}/mapped",
        lambda route: route.fulfill(
            content_type="text/html",
            body="""<!DOCTYPE html>
                <script type="importmap">{"imports": {"asyncbg": "/bg/asyncbg.js"}}</script>
                <script type="module">
                  import { AsyncBG } from "asyncbg";
                  tell({ type: new AsyncBG().baseUrl });
                </script>""",
        ),
    )

    await tab.page.goto(f"{site.url}/mapped")

    await tab.until(f"{site.url}/bg/")
