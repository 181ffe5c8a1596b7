"""The upload example in Chromium: the bar follows the import, over a reload and in a second tab."""

import importlib.util
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.site import serving
from tests.browser.tab import TIMEOUT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

APP = Path(__file__).parents[2] / "examples" / "upload" / "app.py"
ROWS = 120
_BAR_VALUES = """() => {
  const bar = document.querySelector("progress");
  globalThis.values = [];
  new MutationObserver(() => values.push(bar.value)).observe(bar, { attributes: true });
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The example, run in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("upload_example", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    async with serving(module.app, module.bg) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    """A file that takes some seconds."""
    path = tmp_path / "people.csv"
    path.write_text("".join(f"{number},Ada canary7f3a\n" for number in range(ROWS)))
    return path


async def upload(page: Page, url: str, file: Path) -> None:
    """Choose the file and press the button."""
    page.set_default_timeout(TIMEOUT_S * 1000)
    await page.goto(url)
    await page.evaluate(_BAR_VALUES)
    await page.get_by_label("CSV file").set_input_files(file)
    await page.get_by_role("button", name="Import").click()


async def test_the_bar_follows_the_import(context: BrowserContext, url: str, csv_file: Path, tmp_path: Path) -> None:
    """It only grows, by more than one step, and ends full; the upload is gone by then."""
    page = await context.new_page()
    await upload(page, url, csv_file)

    await expect(page.get_by_role("status")).to_have_text(f"{ROWS} rows imported", timeout=TIMEOUT_S * 1000)

    values = await page.evaluate("values.slice(values.lastIndexOf(0) + 1)")
    assert values == sorted(values)
    assert [value for value in values if 0 < value < 1], values
    assert values[-1] == 1
    assert not list((tmp_path / "uploads").iterdir())
    await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


async def test_a_reload_and_a_second_tab_go_on(context: BrowserContext, url: str, csv_file: Path) -> None:
    """The address names the job, so whoever opens it follows the same import to its end."""
    page = await context.new_page()
    await upload(page, url, csv_file)
    await page.wait_for_url("**/#*")
    other = await context.new_page()
    await other.goto(page.url)
    await page.reload()

    for tab in (page, other):
        await expect(tab.get_by_role("status")).to_have_text(f"{ROWS} rows imported", timeout=TIMEOUT_S * 1000)


async def test_the_import_can_be_cancelled(context: BrowserContext, url: str, csv_file: Path) -> None:
    """The button cancels the job, and the page says so."""
    page = await context.new_page()
    await upload(page, url, csv_file)
    await expect(page.get_by_role("status")).to_have_text(re.compile("^row "), timeout=TIMEOUT_S * 1000)

    await page.get_by_role("button", name="Cancel").click()

    await expect(page.get_by_role("status")).to_have_text("cancelled", timeout=TIMEOUT_S * 1000)
