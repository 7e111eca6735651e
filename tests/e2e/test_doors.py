"""The daemon behind TLS and tokens: a real Prometheus with its credentials in a file, browsers' and proxies' headers, secrets nowhere."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import procs
import pytest
import yaml
from tests.runs import ROOT
from tests.test_doors_tokens import openssl

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report

pytestmark = pytest.mark.e2e
DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "secure.md"
WRONG = "smt_" + "W" * 43


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    url = f"sqlite:///{tmp_path / 'ledger' / 'ledger.db'}"
    return os.environ | {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_ZERO_FIRST": "0", "SPENDMETER_METRICS_SETTLE": "0"}


def spendmeter(env: Mapping[str, str], *args: str) -> str:
    return subprocess.run([sys.executable, "-m", "spendmeter", *args], env=env, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def serving(env: Mapping[str, str], log: Path, *args: str) -> Iterator[str]:
    """The daemon's address, once it has said it."""
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "spendmeter", "serve", "--port", "0", *args], env=env, stdout=out, stderr=out)
    try:
        found: list[str] = []
        procs.wait_for(lambda: found.extend(re.findall(r"page +(\S+)/\n", log.read_text())) or found, "it says where it is")
        yield found[-1]
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def asked(url: str, trust: ssl.SSLContext | None = None, data: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    """(status, body, headers) of a request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    opener = urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(urllib.request.Request(url, data, named), timeout=60) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode(), e.headers


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Scraper(procs.Prometheus):
    """Prometheus with the given scrape jobs."""

    def __init__(self, folder: Path, jobs: list[dict[str, Any]]) -> None:
        super().__init__(folder, "127.0.0.1:1")
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._process.send_signal(signal.SIGHUP)


def test_prometheus_scrapes_through_the_doors(tmp_path: Path, env: dict[str, str]) -> None:
    """The job of the document, its paths filled in, gets what the ledger holds; with a wrong token, none, or no trust, nothing."""
    spendmeter(env, "ingest", "--agent", "a", "--task", "t", str(ROOT / "claude" / "json-tool"))
    cert, key = openssl(tmp_path, "server")
    other = openssl(tmp_path, "other")[0]
    good, wrong = tmp_path / "good.token", tmp_path / "wrong.token"
    good.write_text(spendmeter(env, "token", "create", "prometheus", "--scope", "metrics") + "\n")
    wrong.write_text(WRONG)
    log = tmp_path / "serve.log"
    with serving(env, log, "--require-token", "--tls-cert", str(cert), "--tls-key", str(key)) as url:
        block = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
        job = yaml.safe_load(block)["scrape_configs"][0] | {"static_configs": [{"targets": [url.removeprefix("https://")]}]}

        def like(name: str, ca: Path, credentials: Path | None) -> dict[str, Any]:
            told = {"authorization": {"credentials_file": str(credentials)}} if credentials else {}
            kept = {k: v for k, v in job.items() if k != "authorization"}
            return kept | {"job_name": name, "tls_config": {"ca_file": str(ca)}} | told

        jobs = [like("good", cert, good), like("wrong", cert, wrong), like("none", cert, None), like("untrusted", other, good)]
        assert set(jobs[0]) == set(job)
        prometheus = Scraper(tmp_path, jobs)
        with procs.stopping(prometheus):
            procs.wait_for(lambda: prometheus.query('up{job="good"}') == {(): 1.0}, "the scrape succeeds")
            procs.wait_for(lambda: all(prometheus.query(f'up{{job="{j["job_name"]}"}}') == {(): 0.0} for j in jobs[1:]), "the others fail")
            with contextlib.closing(Ledger(Settings(env["SPENDMETER_LEDGER"]))) as ledger:
                want = {labels: v for (name, labels), v in procs.counters(ledger).items() if name == "spendmeter_tokens_out_total"}
            procs.wait_for(lambda: prometheus.query("spendmeter_tokens_out_total") == want, "it holds what the ledger holds")
            assert prometheus.query('count({__name__=~"spendmeter_.*", job!="good"})') == {}


def test_tls_is_what_it_says(tmp_path: Path, env: dict[str, str]) -> None:
    """Only who trusts the certificate gets through, by TLS 1.2 or later; plain text gets no answer, https tells browsers to stay."""
    cert, key = openssl(tmp_path, "server")
    other = openssl(tmp_path, "other")[0]
    secret = spendmeter(env, "token", "create", "me", "--scope", "read")
    with serving(env, tmp_path / "serve.log", "--require-token", "--tls-cert", str(cert), "--tls-key", str(key)) as url:
        trust = ssl.create_default_context(cafile=str(cert))
        status, _, headers = asked(f"{url}/api/v1/ledger", trust, authorization=f"Bearer {secret}")
        assert (status, headers["strict-transport-security"]) == (200, "max-age=31536000")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            asked(f"{url}/livez", ssl.create_default_context(cafile=str(other)))
        port = int(url.rpartition(":")[2])
        for version, works in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", version, "-cipher", "ALL:@SECLEVEL=0", "-CAfile", str(cert)]
            done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
            assert (b"BEGIN CERTIFICATE" in done.stdout) is works, version
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP/" not in sock.recv(1000)


def test_no_secret_is_anywhere(tmp_path: Path, env: dict[str, str]) -> None:
    """Tokens, good ones and wrong ones, by header, by cookie and by form, are in no log, page, answer or file of the ledger."""
    secrets = {name: spendmeter(env, "token", "create", name, "--scope", scope) for name, scope in (("r", "read"), ("a", "admin"))}
    log = tmp_path / "serve.log"
    seen = ""
    with serving(env, log, "--require-token") as url:
        for secret in (*secrets.values(), WRONG):
            for path in ("/", "/runs", "/metrics", "/api/v1/report", "/api/v1/runs/none", "/nothing", "/login"):
                for headers in ({"authorization": f"Bearer {secret}"}, {"cookie": f"spendmeter_token={secret}"}):
                    seen += "".join(asked(url + path, **headers)[1])
            seen += asked(f"{url}/api/v1/report?agent=x&{secret}=1", authorization=f"Bearer {secrets['a']}")[2].as_string()
            seen += asked(f"{url}/login", data=f"token={secret}".encode(), origin=url)[1]
            seen += asked(f"{url}/mcp", data=secret.encode(), authorization=f"Bearer {secret}")[1]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as sock:
            sock.sendall(f"{secrets['a']} nonsense\r\n\r\n".encode())
            seen += sock.recv(1000).decode()
        assert spendmeter(env, "token", "list").count("\n") == 2
    seen += spendmeter(env, "token", "list", "--json") + spendmeter(env, "doctor", "--json") + log.read_text()
    kept = b"".join(p.read_bytes() for p in (tmp_path / "ledger").iterdir())
    assert b"access_tokens" in kept
    for secret in (*secrets.values(), WRONG):
        assert secret not in seen
        assert secret.removeprefix("smt_").encode() not in kept


@pytest.mark.parametrize("trusted", [True, False])
def test_a_proxy_is_believed_where_it_is_named(tmp_path: Path, env: dict[str, str], trusted: bool) -> None:
    """Then failures count by the client that it names, and the cookie is for https; else such headers change nothing."""
    secret = spendmeter(env, "token", "create", "me", "--scope", "read")
    args = ["--proxy", "127.0.0.1"] if trusted else ["--require-token"]
    with serving(env, tmp_path / "serve.log", *args) as url:
        forwarded = {"x_forwarded_proto": "https", "x_forwarded_for": "192.0.2.1"}
        status, _, headers = asked(
            f"{url}/login", data=f"token={secret}".encode(), host="meter.example", origin="https://meter.example", **forwarded
        )
        assert (status, "Secure" in headers["set-cookie"]) == (303, trusted)
        codes = [asked(f"{url}/metrics", x_forwarded_for=f"192.0.2.{1 + i // 11}", authorization=f"Bearer {WRONG}")[0] for i in range(12)]
        assert codes == [401] * 10 + [429] + [401 if trusted else 429]


FOREIGN = """<form id=f method=post enctype=text/plain action="{url}/token-events"><input name='{{"agent":"evil","x":"' value='"}}'></form>
<script>fetch("{url}/token-events", {{method: "POST", mode: "no-cors", credentials: "include", body: '{{"agent":"evil"}}'}})
  .finally(() => f.submit())</script>"""


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """A browser for which every name is this machine; names but localhost are to it as far away as any."""
    path = procs.part("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("playwright is missing: CI runs the real browser")
        pytest.skip("playwright is missing: pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*flags, "--host-resolver-rules=MAP *.example 127.0.0.1"])
        yield browser.new_page()
        browser.close()


def test_a_browser_logs_in_and_no_other_site_writes(tmp_path: Path, env: dict[str, str]) -> None:
    """By a name over plain http, where browsers send no Sec-Fetch-Site; scripts do not see the cookie; a foreign page writes nothing."""
    secret = spendmeter(env, "token", "create", "me", "--scope", "admin")
    log = tmp_path / "serve.log"
    with serving(env, log, "--host", "0.0.0.0") as url, browsing() as page, foreign(FOREIGN) as (evil, show):
        home = url.replace("0.0.0.0", "meter.example")
        page.goto(home)
        assert page.title() == "Log in · Spendmeter"
        page.fill("#token", WRONG)
        page.click("text=Log in >> visible=true >> nth=-1")
        assert "not good here" in page.inner_text("#login")
        page.fill("#token", secret)
        page.press("#token", "Enter")
        page.wait_for_url(f"{home}/")
        assert "spendmeter sync" in page.inner_text("main")
        assert page.evaluate("document.cookie") == ""
        show(home)
        with page.expect_response(lambda r: r.url == f"{home}/token-events" and r.request.is_navigation_request()) as told:
            page.goto(evil)
        assert told.value.status in (401, 403)
        page.wait_for_url(f"{home}/token-events")
        page.goto(f"{home}/login")
        page.click("text=Log out")
        page.goto(home)
        assert page.title() == "Log in · Spendmeter"
    with contextlib.closing(Ledger(Settings(env["SPENDMETER_LEDGER"]))) as ledger:
        assert report(ledger, []).total.tokens_out is None


@contextlib.contextmanager
def foreign(template: str) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Another site: its address, and what makes it serve *template* against a daemon's address."""
    body = b""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def show(url: str) -> None:
        nonlocal body
        body = template.format(url=url).encode()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://evil.example:{site.server_port}/", show
        site.shutdown()


def test_beyond_loopback_it_says_who_gets_in(tmp_path: Path, env: dict[str, str]) -> None:
    """With a token; without one if it was told so; in both cases the start says what that means."""
    log = tmp_path / "serve.log"
    with serving(env, log, "--host", "0.0.0.0", "--insecure-no-token") as url:
        assert asked(url.replace("0.0.0.0", "127.0.0.1") + "/api/v1/ledger", host="any.example")[0] == 200
    assert "no token is asked for" in log.read_text()
    spendmeter(env, "token", "create", "me", "--scope", "read")
    again = tmp_path / "again.log"
    with serving(env, again, "--host", "0.0.0.0") as url:
        assert asked(url.replace("0.0.0.0", "127.0.0.1") + "/api/v1/ledger")[0] == 401
    assert "every request needs a token" in again.read_text()
    assert "in the clear" in again.read_text()
