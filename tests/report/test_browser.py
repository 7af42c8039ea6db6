"""The report and the explorer in a real browser: at a desk and on a phone, by mouse and by finger, light and dark."""

import copy

import pytest

from retro.report import explorer
from retro.report.style import render
from tests.generation.browser import DEVICES, wait

pytestmark = pytest.mark.slow

SIZES = """return [...document.querySelectorAll('figure svg text')].map(text => {
    const {a, b} = text.getScreenCTM(); // of text that may be turned
    return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b)];
})"""
CONTRASTS = """
const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const probe = document.body.appendChild(document.createElement('i'));
probe.style.color = 'var(--card)';
const paper = light(getComputedStyle(probe).color);
return [...document.querySelectorAll('figure svg text')].map(text => {
    const ink = light(getComputedStyle(text).fill);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
});"""
HINTS = """return [...document.querySelectorAll('.sheet, .wide')].filter(each => each.checkVisibility()).map(each =>
    [each.scrollWidth > each.clientWidth + 1, getComputedStyle(each, '::before').visibility === 'visible'])"""
TIP = "return document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
HERE = (
    "return [location.hash, document.getElementById('title').textContent, document.getElementById('place').textContent]"
)


@pytest.fixture(scope="module")
def folder(report):
    report.explorer()
    report.page()
    return report.folder


@pytest.fixture(params=DEVICES, ids=str)
def device(request, browser):
    browser.device(request.param)
    return request.param


def test_the_report_can_be_read(browser, folder, device):
    browser.open((folder / "report.html").as_uri())
    assert browser.complaints() == [] and not browser.overflows()
    sizes = browser.run(SIZES)
    assert len(sizes) > 50 and min(size for _, size in sizes) >= 9, min(sizes, key=lambda each: each[1])
    assert min(browser.run(CONTRASTS)) > 4.5
    hints = browser.run(HINTS)
    assert all(wider == said for wider, said in hints)
    assert any(wider for wider, _ in hints) == (device.width < 600)


def test_figures_say_their_values(browser, folder):
    browser.open((folder / "report.html").as_uri())
    titles = browser.run("return [...document.querySelectorAll('figure svg title')].map(each => each.textContent)")
    assert any("bits per byte, twin" in title for title in titles) and any("nats after" in title for title in titles)
    links = browser.run("return [...document.querySelectorAll('figure .files a')].map(each => each.href)")
    assert len(links) == 10 and all(link.endswith((".svg", ".csv")) for link in links)


def test_the_explorer_is_gone_through(browser, folder, device):
    """Everything that a mouse can do a finger can do, too."""
    page = (folder / "neighbours.html").as_uri()
    browser.open("about:blank")
    browser.open(page)
    assert browser.run("return document.querySelector('header a').href") == (folder / "report.html").as_uri()
    assert browser.run("return document.getElementById('why').checkVisibility() && current === data.opened")
    small = device.width < 600
    assert browser.run("return document.getElementById('aside').checkVisibility()") != small

    device.press(browser, "#next .token:nth-of-type(2)")
    wait(lambda: "nats" in browser.run(TIP), 20)
    box = browser.run(
        "const box = document.getElementById('tip').getBoundingClientRect(); return [box.left, box.right]"
    )
    assert box[0] >= 0 and box[1] <= device.width
    device.press(browser, "#read h3")
    wait(lambda: not browser.run(TIP), 20)

    before = browser.run(HERE)
    device.press(browser, "#following")
    wait(lambda: browser.run(HERE) != before, 20)
    assert not browser.overflows()

    for tab in ("hurt", "helped", "documents"):
        if small:
            device.press(browser, "#open")
        device.press(browser, f"[data-tab={tab}]")
        assert browser.run("return tab") == tab
        before = browser.run("return current")
        device.press(browser, "#list button:not([aria-current=true])")
        wait(lambda before=before: browser.run("return current") != before, 20)
        if small:
            assert not browser.run("return document.getElementById('aside').checkVisibility()")
    if small:
        device.press(browser, "#open")
    browser.run("const view = document.getElementById('view'); view.value = 1; view.dispatchEvent(new Event('change'))")
    assert "Retrieval is off here" in browser.run("return document.getElementById('looked').textContent")
    assert browser.run("return location.hash").endswith("&view=1") and not browser.overflows()
    assert browser.complaints() == []


@pytest.mark.parametrize("tab", ["documents", "helped", "hurt"])
def test_search_and_lists_name_what_they_open(browser, folder, tab):
    browser.device(DEVICES[0])
    browser.open("about:blank")
    browser.open((folder / "neighbours.html").as_uri())
    browser.run("document.querySelector(`[data-tab=${arguments[0]}]`).click()", tab)
    browser.run("const box = document.getElementById('search'); box.value = 'e'; box.dispatchEvent(new Event('input'))")
    told = browser.run("""return [...document.querySelectorAll('#list button')].slice(0, 30).map(button => {
        button.click();
        return [button.querySelector('.gain').textContent, percent(data.chunks[current + 1].change),
            button.querySelector('.name').title, data.documents[data.chunks[current].document].title, saved(current)];
    })""")
    assert told and all(gain == change and name == title for gain, change, name, title, _ in told)
    saved = [each[-1] for each in told]
    if tab != "documents":
        sign = 1 if tab == "hurt" else -1
        assert saved == sorted(saved, reverse=tab == "hurt") and all(sign * value > 0 for value in saved)


@pytest.mark.parametrize("number", [0, 799])
def test_eight_hundred_chunks_and_a_long_title_leave_the_text_on_the_screen(browser, report, tmp_path, device, number):
    losses = explorer.sides([explorer.read_manifest(report.losses[mode]) for mode in ("none", "on")])
    data = explorer.collect(report.dataset, *losses)
    data["chunks"] = [copy.deepcopy(data["chunks"][at % 3]) for at in range(800)]
    title = "A first word, " + "and another one, " * 20 + "and then: Geography"
    data["documents"] = [{**data["documents"][0], "title": title, "first": 0, "count": 800}]
    (tmp_path / "long.html").write_text(render("neighbours.html.j2", data=data), encoding="utf-8")
    browser.open((tmp_path / "long.html").as_uri() + f"#chunk={number}")
    assert (
        browser.run("return document.querySelector('#read .text').getBoundingClientRect().top") < 0.85 * device.height
    )
    shown = browser.run("return document.getElementById('title').textContent")
    assert shown.startswith("A first word") and "…" in shown and shown.endswith("and then: Geography")
    box = "document.querySelector(arguments[0]).getBoundingClientRect()"
    assert (
        browser.run(f"return {box}.top - document.getElementById('map').getBoundingClientRect().top", "#map .read") < 75
    )
    assert not browser.overflows() and browser.complaints() == []
