"""``make picture``: the README's picture of the dashboard, of whatever runs this home has."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import chromium

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "dashboard.png"
WIDTH, HEIGHT, MOST = 1280, 840, 200_000
DRAWN = "return document.querySelectorAll('#pareto .main-svg .point').length > 1"


def main() -> int:
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--json"]
    with tempfile.TemporaryDirectory() as profile, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        driver = chromium(Path(profile))
        try:
            shape = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
            driver.get(json.loads(process.stdout.readline())["url"])
            while not driver.execute_script(DRAWN):
                time.sleep(0.2)
            time.sleep(1.0)  # fonts
            driver.save_screenshot(str(PICTURE))
        finally:
            driver.quit()
            process.terminate()
    size = PICTURE.stat().st_size
    print(f"{PICTURE.relative_to(PICTURE.parents[1])}: {size / 1000:.0f} kB")
    return int(size > MOST)


if __name__ == "__main__":
    sys.exit(main())
