"""The page in a real browser: text and neighbours appear, nothing is executed, stop stops, two tabs both finish."""

import subprocess
import threading
import urllib.error
import urllib.request

import pytest
import uvicorn

from retro.generation.generate import Writer
from retro.generation.serve import application
from tests.evaluation.words import HOSTILE
from tests.generation.browser import DEVICES, free_port, wait

pytestmark = pytest.mark.slow

START = """
document.getElementById('prompt').value = arguments[0];
document.getElementById('tokens').value = arguments[1];
document.getElementById('retrieval').value = arguments[2];
document.getElementById('form').requestSubmit();
"""
STATE = "return document.getElementById('state').textContent"


@pytest.fixture(scope="module")
def writer(dataset):
    return Writer(dataset.folder / "runs/retro-s1")


@pytest.fixture(scope="module")
def address(writer):
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application(writer), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def done(browser):
    return wait(lambda: browser.run(STATE + ".match(/^\\d+ tokens|^Stopped|^Failed/) && " + STATE[7:]))


def test_text_and_what_was_found_appear_escaped(address, browser):
    browser.open(address)
    browser.run(START, f"Speech 3 {HOSTILE}", 40, "on")
    assert "tokens" in done(browser)
    asked = browser.run("return [...document.querySelectorAll('.asked')].map(each => each.textContent).join('')")
    assert '</script><script>alert("x")</script>' in asked
    cards = browser.run("return [...document.querySelectorAll('.looked summary')].map(each => each.textContent)")
    assert cards and all(" · " in card for card in cards)
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.complaints() == []


def test_nothing_is_looked_up_with_retrieval_off(address, browser):
    browser.open(address)
    browser.run(START, "Alba: Economy", 20, "off")
    assert "tokens" in done(browser)
    assert browser.run("return document.querySelectorAll('.looked details').length") == 0
    assert browser.run("return document.querySelector('.own') !== null")


def test_stop_stops(address, browser):
    browser.open(address)
    browser.run(START, "Alba: Economy", 4096, "both")
    wait(lambda: browser.run("return document.querySelector('.own') !== null || /^[0-9]/.test(" + STATE[7:] + ")"))
    browser.run("document.getElementById('stop').click()")
    assert done(browser).startswith(("Stopped", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"))
    assert browser.run("return !document.getElementById('go').disabled")


def test_two_tabs_write_at_once(address, browser):
    browser.open(address)
    first = browser.current()
    browser.run(START, "Alba: Economy", 60, "on")
    browser.tab()
    browser.open(address)
    browser.run(START, "Alba: Economy", 60, "on")
    there = done(browser), browser.run("return document.getElementById('chunks').textContent")
    browser.switch(first)
    assert "tokens" in done(browser) and "tokens" in there[0]
    assert browser.run("return document.getElementById('chunks').textContent") == there[1]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_click_on_a_held_out_page_writes_with_retrieval_and_without(address, browser, device):
    browser.device(device)
    browser.open(address)
    wait(lambda: browser.run("return document.querySelectorAll('#examples button').length") == 3)
    browser.run("document.getElementById('tokens').value = 20")
    device.press(browser, "#examples button")
    assert done(browser).startswith("20 tokens with retrieval, 20 tokens without retrieval")
    sides = browser.run("return ['on', 'off'].map(id => document.querySelector(`#${id} .asked`).textContent.trim())")
    prompt = browser.run("return document.getElementById('prompt').value.trim()")
    assert sides == [prompt, prompt] and prompt
    own = browser.run("return ['on', 'off'].map(id => !!document.querySelector(`#${id} .own`).textContent)")
    assert own == [True, True] and browser.complaints() == [] and not browser.overflows()
    device.press(browser, ".options summary")
    device.press(browser, ".looked details:last-of-type summary")
    opened = browser.run("return [...document.querySelectorAll('details')].filter(each => each.open).length")
    assert opened >= 2 and not browser.overflows()


def test_an_empty_prompt_is_refused_with_a_sentence(address, browser):
    browser.open(address)
    wait(lambda: browser.run("return document.querySelectorAll('#examples button').length"))
    for prompt in ("", "  \n"):
        browser.run(START, prompt, 20, "both")
        assert browser.run(STATE).startswith("The prompt is empty. Write a few words")
        assert browser.run("return document.getElementById('sides').hidden && !document.getElementById('go').disabled")


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/", {"Host": "evil.example"}, None, 400),
        ("/write", {"Content-Type": "text/plain"}, b'{"prompt": "a"}', 415),
        ("/write", {"Content-Type": "application/json"}, b'{"prompt": "a", "tokens": 0}', 422),
        ("/write", {"Content-Type": "application/json"}, b"no", 422),
        ("/write", {"Content-Type": "application/json"}, b'{"prompt": " "}', 422),
    ],
)
def test_what_the_page_would_not_ask_is_refused(address, path, headers, body, status):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address + path, body, headers))
    assert error.value.code == status


def test_a_wrong_port_is_one_line(dataset, warm):
    command = [warm.python, "-m", "retro.generation.serve", "--run", str(dataset.folder / "runs/retro-s1")]
    for port, said in (("65536", "--port 65536: wanted 1 to 65535"), ("0", "--port: found 0; wanted")):
        made = subprocess.run([*command, "--port", port], capture_output=True, text=True)
        assert made.returncode and said in made.stderr and "Traceback" not in made.stderr
