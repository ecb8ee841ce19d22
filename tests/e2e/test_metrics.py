"""What a running lab's brokers and agents tell Prometheus, while clients nobody here wrote are at work."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.prometheus_text import Pages, scrape
from tests.running_lab import RunningLab

CLOUD = "gcp"
B = "yunhe_broker_"
RECORDS = 60_000


def pages(lab: RunningLab) -> dict[str, Pages]:
    return {broker["name"]: scrape(broker["metrics"]) for broker in lab.cloud(CLOUD)["brokers"]}


def test_scrapes_good_and_bad_fail_no_request_and_count_what_was_sent(lab: RunningLab) -> None:
    brokers = lab.cloud(CLOUD)["brokers"]
    addresses = [broker["metrics"] for broker in brokers]
    assert len(set(addresses)) == len(brokers) == 2
    bootstrap = lab.bootstrap(CLOUD)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("measured", 4)])["measured"].result(30)
    before = pages(lab)
    over = threading.Event()

    def scrape_on(address: str) -> int:
        """As a well-behaved scraper, only more often."""
        count = 0
        while not over.wait(0.02):
            try:
                assert scrape(address).value(B + "failed") == 0
                count += 1
            except OSError:
                continue  # the flood below has taken the places
        return count

    def flood(address: str) -> int:
        """As many at once as there is room for, and more, again and again."""
        count = 0
        while not over.is_set():
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    count += answer.status == 200
            except OSError:
                pass
        return count

    where = [urlsplit(address) for address in addresses]
    # Connected, and silent; and half a request.
    half_open = [socket.create_connection((w.hostname, w.port), timeout=10) for w in where for _ in range(4)]
    for one in half_open[::2]:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
    failed: list[object] = []
    acked = 0

    def delivered(error: object, _: object) -> None:
        nonlocal acked
        if error is None:
            acked += 1
        else:
            failed.append(error)

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "batch.num.messages": 50, "retries": 0})
    with ThreadPoolExecutor(6) as pool:
        scraping = [pool.submit(scrape_on, address) for address in addresses]
        flooding = [pool.submit(flood, address) for address in addresses for _ in range(2)]
        try:
            for i in range(RECORDS):
                producer.produce("measured", b"%09d" % i * 10, partition=i % 4, on_delivery=delivered)
                if i % 1000 == 0:
                    producer.poll(0.01)
            assert producer.flush(60) == 0
        finally:
            over.set()
        scraped, flooded = [f.result(30) for f in scraping], [f.result(30) for f in flooding]
    for one in half_open:
        one.close()
    assert failed == [] and acked == RECORDS
    assert min(scraped) > 0 and sum(flooded) > 0, (scraped, flooded)
    after = pages(lab)

    def grew(name: str, **labels: str) -> float:
        return sum(after[b].value(B + name, **labels) - before[b].value(B + name, **labels) for b in after)

    assert grew("topic_written_records_total", topic="measured") == RECORDS
    assert RECORDS * 90 < grew("topic_written_bytes_total", topic="measured") < RECORDS * 120
    assert grew("requests_total", api="Produce") >= RECORDS / 50
    assert sum(page.value(B + "controller") for page in after.values()) == 1
    assert {page.value(B + "live_brokers") for page in after.values()} == {2}
    for page in after.values():
        stores = page.families["yunhe_object_store_requests_total"].samples
        assert len(stores) == 1 and min(stores.values()) > 5, "its bucket, where the ledger is"
        assert page.value("process_cpu_seconds_total") > 0


def test_status_says_where_brokers_and_agents_are_measured(lab: RunningLab) -> None:
    cloud = lab.cloud(CLOUD)
    for broker in cloud["brokers"]:
        page = scrape(broker["metrics"])
        (info,) = page.families[B + "info"].samples
        assert dict(info[1])["broker"] == broker["name"] and dict(info[1])["zone"] == broker["zone"]
    for agent in cloud["agents"]:
        page = scrape(agent["metrics"])
        assert page.value("yunhe_agent_info", cell=CLOUD, agent=agent["name"], zone=agent["zone"]) == 1
        serves = page.families["yunhe_agent_process_serves"].samples
        assert serves and set(serves.values()) == {1.0}
