"""How a topic's brokers are reached, as librdkafka is told. Who logs in is read from where the spec says, each time."""

from __future__ import annotations

from dataplane.contract.database import TopicSpec
from providers.base.credentials import read_credentials
from providers.base.errors import Invalid


def client_config(topic: TopicSpec) -> dict[str, str | int | bool]:
    """
    Raises:
        Invalid: the login cannot be read, or there is none where one is needed.
    """
    config: dict[str, str | int | bool] = {
        "bootstrap.servers": ",".join(topic.bootstrap),
        "security.protocol": topic.protocol.value,
        "log_level": 3,
    }
    if topic.ca_file is not None and topic.protocol.tls:
        config["ssl.ca.location"] = topic.ca_file
    if not topic.protocol.sasl:
        return config
    if topic.login is None or topic.mechanism is None:
        raise Invalid(f"brokers of {topic.cluster} want a login, and none is named", hint="add upload.via.login")
    login = read_credentials(topic.login, "username", "password")
    for name in ("username", "password"):
        if not isinstance(login[name], str) or not login[name]:
            raise Invalid(f"{name} in {topic.login} is no text")
        config[f"sasl.{name}"] = login[name]
    config["sasl.mechanism"] = topic.mechanism.value
    return config
