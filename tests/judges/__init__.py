"""Judges nobody here wrote, over a lab that is up: Apache Kafka's tools, MirrorMaker 2, kcat, librdkafka, aiokafka,
kafka-python. `make judges` runs them and writes docs/compatibility.md; they are no part of `make test`. Open
conftest.py first, then test_kafka_tools.py.
"""
