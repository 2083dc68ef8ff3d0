"""Prefect's UI as people use it: Chromium, driven by Selenium, against the servers of ``winnow up``. Screenshots are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PICTURES = Path(__file__).resolve().parents[2] / "build" / "browser"
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")  # of Debian's packages
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1800",
)
PATIENCE = 120.0  # seconds: a loaded machine is slow, and a page that works is not waited for
AGAIN = 15.0  # seconds after which a press that did nothing is made again


def chromium(profile: Path) -> webdriver.Chrome:
    """A new window, which keeps what its console says and what it asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))


class Browser:
    """One window, logged in to a Prefect server where a login is given. Elements are found by what a person reads."""

    def __init__(self, url: str, login: str, profile: Path) -> None:
        self.url, self.driver = url, chromium(profile)
        if login:
            self.open("/login")
            self.find("//input[@type='password']").send_keys(login, Keys.ENTER)
            self.until(lambda: "/login" not in self.driver.current_url, "logged in")

    def open(self, path: str) -> None:
        self.driver.get(f"{self.url}/v2{path}")

    def until(self, holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """What ``holds`` returns, once it is true; the page may be drawn anew under it."""
        deadline, found = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if found := holds():
                    return found
            except WebDriverException:
                pass
            time.sleep(0.2)
        self.picture("timeout")
        page = " ".join(self.text().split())
        raise AssertionError(f"not {what} after {seconds:.0f} s; {PICTURES / 'timeout.png'} has the page, which says: {page}")

    def find(self, path: str, seconds: float = PATIENCE) -> WebElement:
        return self.until(lambda: next((one for one in self._all(path) if one.is_displayed()), None), path, seconds)

    def _all(self, path: str) -> list[WebElement]:
        return self.driver.find_elements(By.XPATH, path)

    def press(self, text: str, inside: str = "") -> None:
        """The button, tab or menu entry that says this."""
        path = f"{inside}{_pressable(text)}"
        self.until(lambda: self._click(path), f"a button {text}")

    def press_until(self, text: str, holds: Callable[[], Any], what: str) -> Any:
        """What ``holds`` returns, once a press has made it true. A page that is drawn anew swallows a press: it is made again
        where the button still stands a while later."""
        pressed = time.monotonic() - 2 * AGAIN

        def held() -> Any:
            nonlocal pressed
            found = holds()
            if not found and time.monotonic() - pressed > AGAIN and self._click(_pressable(text)):
                pressed = time.monotonic()
            return found

        return self.until(held, what)

    def submit(self, text: str) -> None:
        """Press the button that ends a dialog, and see the dialog gone."""
        path = f"//*[@role='dialog']//button[normalize-space(.)='{text}']"
        self.until(lambda: self._click(path), f"a button {text}")
        self.until(lambda: not self._all(path), f"done by {text}")

    def _click(self, path: str) -> bool:
        found = [one for one in self._all(path) if one.is_displayed() and one.is_enabled()]
        if found:
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found[-1])
            found[-1].click()
        return bool(found)

    def field(self, *names: str) -> WebElement:
        """The input of a form that stands under these headings, the outermost first."""
        path = "".join(map(_group, names[:-1]))
        label = self.find(f"{path}{_label(names[-1])}")
        return self.find(f"//*[@id='{label.get_attribute('for')}']")

    def fill(self, value: object, *names: str) -> None:
        """Type a value, again where the page was drawn anew under it, and look at it for a moment, as a person does."""
        self.until(lambda: self._typed(str(value), names), f"{value} in {'.'.join(names)}")

    def _typed(self, value: str, names: tuple[str, ...]) -> bool:
        entry = self.field(*names)
        if entry.get_attribute("value") != value:
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", entry)
            entry.send_keys(Keys.CONTROL, "a")
            entry.send_keys(value)
        time.sleep(0.5)
        return self.field(*names).get_attribute("value") == value

    def choose(self, value: str, *names: str) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.field(*names))
        self.field(*names).click()
        entry = f"//*[@role='option' or @role='menuitem'][normalize-space(.)='{value}']"  # other fields may say the same
        self.until(lambda: self._click(entry), f"a choice {value}")

    def add(self, value: str, name: str) -> None:
        """One more item of a list."""
        self.press("Add item", inside=_group(name))
        self.find(f"({_group(name)}//textarea)[last()]").send_keys(value)

    def switch(self, schedule: str, on: bool) -> None:
        """Put the switch of the schedule that is described like this; again where a page drawn anew has swallowed the click."""
        path = f"//*[@role='switch'][@aria-label='toggle {schedule}']"

        def put() -> bool:
            if self.find(path).get_attribute("aria-checked") == str(on).lower():
                return True
            self._click(path)
            time.sleep(3)
            return False

        self.until(put, f"a switch of {schedule} that is {'on' if on else 'off'}")

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def reads(self, words: str, seconds: float = PATIENCE) -> None:
        self.until(lambda: words in " ".join(self.text().split()), f"on the page: {words}", seconds)

    def picture(self, name: str) -> None:
        """The whole page, however long, in build/browser."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(PICTURES / f"{name}.png"))

    def close(self) -> None:
        self.driver.quit()


def _label(name: str) -> str:
    """The heading of a field, which says so where it may be left out."""
    return f"//label[normalize-space(.)='{name}' or normalize-space(.)='{name} (Optional)']"


def _pressable(text: str) -> str:
    roles = "self::button or @role='menuitem' or @role='option' or @role='tab'"
    return f"//*[{roles}][normalize-space(.)='{text}']"


def _group(name: str) -> str:
    """All that stands under a heading."""
    return f"{_label(name)}/ancestor::div[contains(@class, 'group')][1]"
