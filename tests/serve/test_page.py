"""The page, in Debian's Chromium: ask, watch, compare, open a citation, upload a PDF; on a desktop and on a phone.

Run by ``make test-browser``. It needs Debian's chromium and chromium-driver.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fpdf import FPDF
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from serving import Running

from gritrag import GritModel
from gritrag.corpus import documents, questions

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WAIT = 120
DESKTOP, PHONE = (1280, 1000), (390, 844)


@pytest.fixture(scope="module")
def served(start: Callable[..., Running], make_index: Callable[..., Path]) -> Running:
    model = GritModel.from_pretrained("gritrag-smollm2-135m")
    return start(model, {"island": make_index(model, documents()[:12], "bf16")})


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "no chromium: apt install chromium chromium-driver"
    assert driver, "no chromedriver: apt install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, served: Running) -> Iterator["Page"]:
    chromium.set_window_size(*DESKTOP)
    chromium.get(served.url)
    page = Page(chromium)
    page.until(lambda: page.all("#index option"))
    yield page
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


class Page:
    """What a test does with the page."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, WAIT, poll_frequency=0.02).until(lambda _: condition())

    def ask(self, question: str) -> None:
        self.one("#question").clear()
        self.one("#question").send_keys(question, Keys.ENTER)

    def lengths_of_the_answer(self) -> list[int]:
        """Noted whenever the text changes, until it is whole."""
        return self.browser.execute_async_script(
            """
            const done = arguments[0], lengths = [], text = document.querySelector(".answer .text");
            const look = () => {
              lengths.push(text.textContent.length);
              if (!text.classList.contains("busy")) done(lengths);
            };
            const all = {childList: true, characterData: true, subtree: true, attributes: true};
            new MutationObserver(look).observe(text, all);
            """
        )


def test_an_answer_streams_and_its_citation_opens_a_marked_passage(page: Page) -> None:
    question = questions()[0]
    page.browser.set_script_timeout(WAIT)
    page.ask(question.question)
    lengths = page.lengths_of_the_answer()
    assert len({length for length in lengths if length}) > 3, "the text grew piece by piece"
    page.until(lambda: page.all(".stages dt"))
    assert [stage.text for stage in page.all(".stages dt")] == ["retrieve", "load", "place", "forward", "decode"]
    assert "copper dust" in page.one(".answer .text").text
    lacks = re.search(r"; the passages lack the answer with a probability of (\d+) %$", page.one(".answer .usage").text)
    assert lacks
    assert int(lacks[1]) < 50, "they hold it"
    assert page.one("#status").get_attribute("textContent").startswith("Answer: ")
    (citation,) = [button for button in page.all(".cited button") if "Vellamar Strait" in button.text]
    citation.click()
    focused = page.browser.switch_to.active_element
    assert "Vellamar Strait" in focused.text
    marked = focused.find_elements(By.XPATH, "ancestor::details[@open]//mark")
    assert any("copper dust" in mark.text for mark in marked)


def test_the_switch_sets_cached_beside_uncached(page: Page) -> None:
    page.one("#compare").send_keys(Keys.SPACE)  # with the keyboard
    page.ask(questions()[0].question)
    page.until(lambda: page.one("#verdict").is_displayed())
    cached, uncached = page.all(".answer")
    assert "0 of" not in cached.find_element(By.CSS_SELECTOR, ".usage").text
    read_again = uncached.find_element(By.CSS_SELECTOR, ".usage").text
    assert read_again.startswith("0 of")
    assert "probability" not in read_again, "only answers from states are calibrated to tell"
    assert page.one("#verdict").text.startswith("The first token came ")
    assert cached.rect["y"] == uncached.rect["y"]


def test_an_uploaded_pdf_is_read_once_and_answers(page: Page, tmp_path: Path) -> None:
    pdf = FPDF()
    pdf.set_font("helvetica", size=14)
    for text in ("The lighthouse of Brem is painted yellow.", "The keeper of Brem is called Ilse Torvald."):
        pdf.add_page()
        pdf.multi_cell(0, 8, text)
    pdf.output(str(tmp_path / "brem.pdf"))
    page.one("#files").send_keys(str(tmp_path / "brem.pdf"))
    page.until(lambda: "read once: 2 passages" in page.one("#uploads").text)
    assert "MiB of states" in page.one("#uploads").text
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7")
    page.one("#files").send_keys(str(tmp_path / "broken.pdf"))
    page.until(lambda: page.all("#uploads .problem"))
    assert "broken" in page.one("#uploads .problem").text
    page.ask("What is the name of the keeper of Brem?")
    page.until(lambda: page.all(".stages dt"))
    assert "Ilse Torvald" in page.one(".answer .text").text
    assert any("brem.pdf, page 2" in button.text for button in page.all(".cited button"))


def test_a_mistake_is_told_in_place(page: Page) -> None:
    page.ask("word " * 799)
    page.browser.execute_script("document.getElementById('index').innerHTML = '<option>gone</option>'")
    page.until(lambda: page.all(".stages dt") or page.one("#problem").is_displayed())
    page.ask("Is there such an index?")
    page.until(lambda: page.one("#problem").is_displayed())
    assert "gone" in page.one("#problem").text
    page.browser.get_log("browser")  # the refused request is logged as an error, rightly


def test_it_fits_a_phone_and_loads_nothing_from_elsewhere(page: Page, served: Running) -> None:
    page.ask(questions()[0].question)
    page.until(lambda: page.all(".stages dt"))
    size = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert loaded
    assert all(name.startswith(served.url) for name in loaded)


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.browser.execute_script(
        """return [...document.querySelectorAll("input, select, textarea, button, summary")].filter((each) =>
             !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
    )
    assert nameless == []
