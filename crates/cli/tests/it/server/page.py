"""The page at / in a headless Chromium: BASE_URL KEY [FOLDER for screenshots].

Talks to the browser by its debugging protocol through pipes, so Python's own library is enough.
"""

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

BASE, KEY = sys.argv[1], sys.argv[2]
PICTURES = Path(sys.argv[3]) if len(sys.argv) > 3 else None
NAMES = ["chromium", "chromium-browser", "google-chrome"]
PATIENCE_SECONDS = 60


class Browser:
    """A page of a browser of its own."""

    def __init__(self, folder):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        assert program, f"none of {NAMES} is in PATH"
        (their_in, self.to), (self.back, their_out) = os.pipe(), os.pipe()

        def descriptors():
            first, second = os.dup(their_in), os.dup(their_out)
            os.dup2(first, 3)
            os.dup2(second, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=1080,900",
                 "--disable-background-networking", "--no-first-run"]
        self.process = subprocess.Popen([program, *flags], preexec_fn=descriptors, close_fds=False,
                                        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        self.count, self.rest, self.events, self.session = 0, b"", [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.ask(f"{domain}.enable")

    def receive(self):
        while b"\0" not in self.rest:
            piece = os.read(self.back, 1 << 16)
            assert piece, "the browser has ended"
            self.rest += piece
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def js(self, code):
        """The value of an expression."""
        result = self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in result, (code, result)
        return result["result"].get("value")

    def wait(self, code):
        """The value of an expression once it is true."""
        start = time.monotonic()
        while not (value := self.js(code)):
            waited = time.monotonic() - start
            assert waited < PATIENCE_SECONDS, (code, self.js("document.body.innerText"))
            time.sleep(0.05)
        return value

    def key(self, name, text=None):
        for kind in ["keyDown", "keyUp"]:
            typed = {"text": text} if text and kind == "keyDown" else {}
            code = {"Enter": 13, "Tab": 9}[name]
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                     windowsVirtualKeyCode=code, **typed)

    def type(self, text):
        self.ask("Input.insertText", text=text)

    def scheme(self, value):
        feature = {"name": "prefers-color-scheme", "value": value}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, name):
        if PICTURES:
            data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            (PICTURES / f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self.process.terminate()
        self.process.wait()


def post(path, body):
    connection = http.client.HTTPConnection(urlsplit(BASE).netloc, timeout=PATIENCE_SECONDS)
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    return connection, connection.getresponse()


def the_key_is_asked_for(page):
    page.ask("Page.navigate", url=BASE)
    page.wait("!document.getElementById('key-section')?.hidden")
    page.wait("document.activeElement.id == 'key'")
    assert "API key" in page.js("document.getElementById('status').textContent")
    page.type("wrong")
    page.key("Enter", "\r")
    page.wait("document.getElementById('key').value == ''")
    page.wait("!document.getElementById('key-section').hidden")
    page.type(KEY)
    page.key("Enter", "\r")
    page.wait("document.getElementById('model').textContent == 'demo'")
    # What is refused without the key is in the browser's log; from here on nothing may be.
    page.events.clear()


def segments(page):
    return page.js("[...document.querySelectorAll('#bar > div')].map(d => [d.title, d.clientWidth])")


def the_budget_is_drawn(page):
    page.wait("document.querySelectorAll('#bar > div').length > 2")
    names = [title.split(":")[0] for title, _ in segments(page)]
    assert names[:2] == ["the program", "weights"] and names[-1] == "free", names
    widths = dict(segments(page))
    whole = page.js("document.getElementById('bar').clientWidth")
    assert abs(sum(widths.values()) - whole) <= len(widths), (widths, whole)
    connection, response = post("/v1/completions", {
        "prompt": "Once upon a time", "max_tokens": 20000, "stream": True, "ignore_eos": True})
    assert response.status == 200, response.read()
    title = page.wait("[...document.querySelectorAll('#bar > div')].map(d => d.title)"
                      ".find(t => t.startsWith('KV of'))")
    assert "MiB" in title, title
    row = "[...document.querySelectorAll('#requests tbody td')].map(d => d.textContent)"
    page.wait(f"Number(({row})[3]) > 0")
    assert page.js(row)[2].endswith(" of 20000"), page.js(row)
    label = page.js("document.getElementById('bar').getAttribute('aria-label')")
    assert "weights 3.1 MiB" in label and "KV of" in label and "free" in label, label
    # Both: the socket closes with the last of them.
    return connection, response


def the_chat_answers(page):
    connection, response = post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 24,
        "temperature": 0})
    expected = json.loads(response.read())["choices"][0]["message"]["content"]
    connection.close()
    page.js("document.getElementById('most').value = 24;"
            "document.getElementById('temperature').value = 0;"
            "document.getElementById('message').focus()")
    page.type("Once upon a time")
    page.key("Enter", "\r")
    said = "[...document.querySelectorAll('#log p')].map(p => p.textContent)"
    page.wait(f"({said}).length == 2 && document.getElementById('stop').hidden")
    assert page.js(said) == ["Once upon a time", expected], (page.js(said), expected)
    # A second message sees the first; a long answer is stopped by the button.
    page.js("document.getElementById('most').value = 20000")
    page.type("<b>And</b> then?")
    page.key("Enter", "\r")
    page.wait(f"({said}).length == 4 && ({said})[3].length > 1")
    assert page.js("document.querySelector('#log b')") is None, "markup is text"
    page.js("document.getElementById('stop').click()")
    page.wait("document.getElementById('stop').hidden")
    assert page.js("document.activeElement.id") == "message"


# One pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAA"
                       "AElFTkSuQmCC")


def an_image_is_sent(page, folder):
    (Path(folder) / "pixel.png").write_bytes(PNG)
    (Path(folder) / "note.png").write_bytes(b"no image")
    root = page.ask("DOM.getDocument")["root"]["nodeId"]
    field = page.ask("DOM.querySelector", nodeId=root, selector="#images")["nodeId"]
    said = "[...document.querySelectorAll('#log p')].map(p => p.textContent)"
    ready = "document.getElementById('stop').hidden && !document.getElementById('send').disabled"

    def ask(name, count):
        page.ask("DOM.setFileInputFiles", files=[str(Path(folder) / name)], nodeId=field)
        page.js("document.getElementById('most').value = 4;"
                "document.getElementById('message').focus()")
        page.type("What is it?")
        page.key("Enter", "\r")
        page.wait(f"({said}).length == {count} && {ready}")

    ask("pixel.png", 2)
    assert page.js("document.querySelector('#log .you img').naturalWidth") == 1
    assert page.js("document.getElementById('images').files.length") == 0
    page.events.clear()
    ask("note.png", 4)
    assert "image 2 is no image" in page.js(said)[3], page.js(said)
    assert page.js("document.getElementById('images').files.length") == 1, "it can be exchanged"
    page.picture("image")
    # The browser's log has the refusal.
    page.events.clear()


def everything_has_a_name_and_is_reached_by_keys(page):
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "spinbutton", "image", "img", "log", "table", "region"}
    found = {}
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in controls and not node["ignored"]:
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert all(name for names in found.values() for name in names if names), found
    assert found.get("log") == ["Chat"] and len(found["spinbutton"]) == 2, found
    reached = set()
    for _ in range(12):
        page.key("Tab")
        reached.add(page.js("document.activeElement.id"))
    assert {"message", "most", "temperature", "clear", "send"} <= reached, reached


def it_is_light_and_dark(page):
    colours = []
    for scheme in ["light", "dark"]:
        page.scheme(scheme)
        page.picture(scheme)
        colours.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1], colours
    page.ask("Emulation.setDeviceMetricsOverride", width=380, height=1500, deviceScaleFactor=1,
             mobile=True)
    page.picture("narrow")
    wide = page.js("document.documentElement.scrollWidth")
    assert wide <= 380, f"a narrow screen must scroll sideways: {wide}"


def nothing_comes_from_elsewhere(page):
    for event in page.events:
        method, parameters = event["method"], event["params"]
        assert method != "Runtime.exceptionThrown", event
        if method == "Log.entryAdded":
            assert parameters["entry"]["level"] != "error", event
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            assert url.startswith((BASE, "data:")), url


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Browser(folder)
        try:
            the_key_is_asked_for(page)
            page.wait("document.getElementById('model').textContent")
            if page.js("!document.getElementById('attach').hidden"):
                an_image_is_sent(page, folder)
                nothing_comes_from_elsewhere(page)
                print("the page sends images")
                return
            running = the_budget_is_drawn(page)
            the_chat_answers(page)
            everything_has_a_name_and_is_reached_by_keys(page)
            it_is_light_and_dark(page)
            assert page.js("document.getElementById('idle').hidden")
            [held.close() for held in running]
            page.wait("!document.getElementById('idle').hidden")
            nothing_comes_from_elsewhere(page)
        finally:
            page.close()
    print("the page works")


main()
