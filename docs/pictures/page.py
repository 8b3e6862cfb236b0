"""Takes page-desktop.png and page-phone.png of a server that runs: python docs/pictures/page.py http://127.0.0.1:8000

Needs Chromium, its driver, and an index of the demo's passages: gritrag demo; gritrag serve indexes/demo
"""

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).parent
QUESTION = "Why does the sea between Osk and the mainland have a green tint?"
PASSAGES = 10
SIZES = {"desktop": 1100, "phone": 390}


def main(url: str) -> None:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        raise SystemExit("no Chromium with its driver: apt install chromium chromium-driver")
    options.binary_location = program
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.get(url)
    wait = WebDriverWait(browser, 120)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#index option"))
    browser.find_element(By.ID, "compare").click()
    count = browser.find_element(By.ID, "count")
    count.clear()
    count.send_keys(str(PASSAGES))
    for question in ("What burns?", QUESTION):  # the first answer of a server pays for warming up
        box = browser.find_element(By.ID, "question")
        box.clear()
        box.send_keys(question, Keys.ENTER)
        wait.until(lambda _: not browser.find_element(By.ID, "verdict").is_displayed())
        wait.until(lambda _: browser.find_element(By.ID, "verdict").is_displayed())
    browser.find_element(By.CSS_SELECTOR, ".cited button").click()
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    for name, width in SIZES.items():
        size = {"width": width, "height": 600, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        end = browser.execute_script(
            "return document.querySelector('#passages li:nth-child(3)').getBoundingClientRect()"
        )
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": round(end["bottom"]) + 12})
        browser.save_screenshot(str(HERE / f"page-{name}.png"))
    browser.quit()


if __name__ == "__main__":
    main(sys.argv[1])
