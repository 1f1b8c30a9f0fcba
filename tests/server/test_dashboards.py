"""deploy/grafana and deploy/prometheus against the /metrics of a server that has done some of everything.

What they name must be there, without any Prometheus; where Debian's package `prometheus` is installed, its promtool
checks the rules and tries each alert, and Prometheus itself evaluates everything on the live data.
"""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.server_process import find_free_port
from tests.server.harness import ThreadedServer, ask, serving, until
from tests.server.promql import grouping_labels, selectors, series_of

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "atlas-serve.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [*QUERIES, *(alert["expr"] for alert in ALERTS)]
# What Prometheus itself says of a target.
TARGET_LABELS = {"instance", "job"}
GRID_WIDTH = 24


@pytest.fixture(scope="module")
def busy(model: Path) -> Iterator[ThreadedServer]:
    """Has answered, read, resumed and refused; samples of the memory are taken early."""
    with (
        serving(model, memory_sample_tokens="60", ingest_commit_tokens="60") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        client.post("/v1/sessions/s/ingest", json={"text": "Mary went to the garden.\n" * 40})
        for text in ("a", "b"):
            ask(client, text, session_id="s")
        ask(client, "c", best_of=2)
        yield server


@pytest.fixture(scope="module")
def series(busy: ThreadedServer) -> Mapping[str, Mapping[str, set[str]]]:
    return {**series_of(httpx.get(f"{busy.base_url}/metrics").text), "up": {}}


@pytest.mark.parametrize("expression", sorted(set(EXPRESSIONS)))
def test_every_metric_label_and_value_that_is_asked_for_is_served(
    series: Mapping[str, Mapping[str, set[str]]], expression: str
) -> None:
    asked = selectors(expression)
    assert asked
    for selector in asked:
        assert selector.metric in series
        labels = series[selector.metric]
        for label, operator, value in selector.matchers:
            assert label in {*labels, *TARGET_LABELS}
            # Statuses are there once they have been answered with; all other values are from the start.
            if label not in TARGET_LABELS | {"status"}:
                assert operator in ("=", "=~")
                assert set(value.split("|")) <= labels[label]
    served = {label for selector in asked for label in series[selector.metric]}
    assert grouping_labels(expression) <= served | TARGET_LABELS


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_prometheus_for_what_its_legend_names(panel: dict[str, Any]) -> None:
    assert panel["type"] == "timeseries"
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCD"[: len(panel["targets"])])
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= grouping_labels(target["expr"]) | TARGET_LABELS
        assert 'instance=~"$instance"' in target["expr"]
        assert set(re.findall(r"\[([^]]+)\]", target["expr"])) <= {"$__rate_interval"}


def test_the_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < GRID_WIDTH for x, _ in cells)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}


def test_what_the_dashboard_leaves_out_is_known(series: Mapping[str, Mapping[str, set[str]]]) -> None:
    """A new metric is shown, or somebody says here why it is not."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", each.metric) for query in QUERIES for each in selectors(query)}
    served = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series if name.startswith("atlas_")}
    # Who waits for room for a state is an alert.
    assert served - shown == {"atlas_inflight_state_waiting"}


def test_an_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        told = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        assert told <= grouping_labels(alert["expr"]) | TARGET_LABELS


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")),
        ("test", "rules", str(Path(__file__).with_name("alerts_test.yml"))),
    ],
    ids=lambda arguments: arguments[1],
)
def test_promtool_finds_nothing_wrong_and_each_alert_fires(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    tried = Path(__file__).with_name("alerts_test.yml").read_text(encoding="utf-8")
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r'alertname="(\w+)"', tried))


@pytest.fixture(scope="module")
def prometheus(busy: ThreadedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Debian's Prometheus, which has scraped the server several times under the shipped rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    config = {
        "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms", "evaluation_interval": "300ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "atlas-serve", "static_configs": [{"targets": [busy.base_url.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{find_free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=error"]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=20) as client:
            until(lambda: _num_scrapes(client) >= 3, seconds=60)
            yield client
    finally:
        process.kill()
        process.wait()


def test_prometheus_itself_has_an_answer_to_every_query(prometheus: httpx.Client) -> None:
    for query in sorted(set(QUERIES)):
        expression = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        answer = _query(prometheus, expression)
        assert answer["status"] == "success", (query, answer)
        assert answer["data"]["result"], query


def test_prometheus_itself_evaluates_every_rule_and_none_fires_on_a_server_that_is_well(
    prometheus: httpx.Client,
) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: rules() and all(rule["health"] != "unknown" for rule in rules()), seconds=60)
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules()} == {
        alert["alert"]: ("ok", "inactive") for alert in ALERTS
    }


def _query(prometheus: httpx.Client, expression: str) -> dict[str, Any]:
    answer: dict[str, Any] = prometheus.get("/query", params={"query": expression}).json()
    return answer


def _num_scrapes(prometheus: httpx.Client) -> float:
    try:
        found = _query(prometheus, "count_over_time(atlas_num_requests_running[1m])")["data"]["result"]
    except (httpx.TransportError, ValueError, KeyError):
        return 0
    return float(found[0]["value"][1]) if found else 0
