"""The check of a page in a browser can fail, for each of its reasons."""

import pytest

from trainer.pages.page import page, paragraph

FAULTS = {
    '<p style="width: 2000px">wide</p>': "400 pixels: the body scrolls by",
    '<details><p style="width: 2000px">wide</p></details>': "400 pixels, opened: the body scrolls by",
    '<p style="color: #777; background: #888">pale</p>': "1400 pixels, dark: pale: ['P', 'pale'",
    '<img src="data:image/png;base64,AAAA" alt="broken">': "1400 pixels: no picture: broken",
    '<img src="https://localhost:1/x.png" alt="far">': "Content Security Policy",
    "<script>document.title = 1</script>": "Content Security Policy",
    '<img src="data:," alt="handler" onerror="document.title = 1">': "inline event handler",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "page.html"
    path.write_text(page("A page", "About it.", "", [("one", "One", paragraph("Text."))], ""))
    return path


def test_a_page_without_faults(good, browser):
    assert browser.faults(good) == []


@pytest.mark.parametrize("markup, expected", FAULTS.items())
def test_a_fault_is_told(good, browser, tmp_path, markup, expected):
    bad = tmp_path / "bad.html"
    bad.write_text(good.read_text().replace("</main>", f"{markup}</main>"))
    found = browser.faults(bad)
    assert any(expected in fault for fault in found), found


def test_what_a_page_lacks_is_told(good, browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><p>Text.</p><script>absent()</script>")
    told = " ".join(browser.faults(bad))
    assert (
        "400 pixels: laid out for 980" in told
        and "no content security policy" in told
        and "absent is not defined" in told
    )


def test_keys_are_pressed(good, browser):
    browser.open(good, 400)
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the content"
    browser.press("Tab", "Enter")
    assert browser.run("location.hash") == "#one"
