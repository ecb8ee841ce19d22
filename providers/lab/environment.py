"""What a stranger needs to reach an emulated cloud with that cloud's own SDK: addresses, names, environment variables.

The secrets in here are the lab's own, made at random for this state directory and of use nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from providers.base.errors import Invalid
from providers.lab.launcher import ACCOUNTS, DNS_ZONE, GROUPS, CloudAddress


def credentials(address: CloudAddress) -> dict[str, Any]:
    """The content of the cloud's credentials file.

    Raises:
        Invalid: it cannot be read.
    """
    path = Path(address.bucket.credentials_file or "")
    try:
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"the credentials file {path} cannot be read", hint="yunhe lab up makes it") from error
    return dict(plain)


def environment(address: CloudAddress) -> dict[str, str]:
    """Environment variables by which the cloud's SDKs and tools find the emulated cloud instead.

    Names: AWS SDKs and Tools Reference Guide, service-specific endpoints; Azure Storage connection strings; Cloud
    Storage client libraries, STORAGE_EMULATOR_HOST; alibabacloud-oss-v2, EnvironmentVariableCredentialsProvider.
    """
    secrets = credentials(address)
    endpoint = str(address.bucket.endpoint)
    control = address.control.endpoint if address.control is not None else None
    match address.provider:
        case "azure":
            made = {
                "AZURE_STORAGE_CONNECTION_STRING": (
                    f"DefaultEndpointsProtocol=http;AccountName={secrets['account']};"
                    f"AccountKey={secrets['account_key']};BlobEndpoint={endpoint}/{secrets['account']};"
                ),
                "AZURE_STORAGE_ACCOUNT": str(secrets["account"]),
                "AZURE_STORAGE_KEY": str(secrets["account_key"]),
            }
            if control:
                made |= {
                    "AZURE_TENANT_ID": str(secrets["tenant"]),
                    "AZURE_CLIENT_ID": str(secrets["client_id"]),
                    "AZURE_CLIENT_SECRET": str(secrets["client_secret"]),
                    "AZURE_SUBSCRIPTION_ID": ACCOUNTS["azure"],
                    "AZURE_RESOURCE_GROUP": GROUPS["azure"],
                }
            return made
        case "gcp":
            return {"STORAGE_EMULATOR_HOST": endpoint, "GOOGLE_CLOUD_PROJECT": ACCOUNTS["gcp"]}
        case "aliyun":
            keys = str(secrets["access_key"]), str(secrets["secret_key"])
            return {
                "OSS_ENDPOINT": endpoint,
                "OSS_REGION": address.region,
                "OSS_ACCESS_KEY_ID": keys[0],
                "OSS_ACCESS_KEY_SECRET": keys[1],
                "ALIBABA_CLOUD_ACCESS_KEY_ID": keys[0],
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET": keys[1],
            }
        case _:
            made = {
                "AWS_ENDPOINT_URL_S3": endpoint,
                "AWS_ACCESS_KEY_ID": str(secrets["access_key"]),
                "AWS_SECRET_ACCESS_KEY": str(secrets["secret_key"]),
                "AWS_REGION": address.region,
                "AWS_DEFAULT_REGION": address.region,
            }
            if control:
                made |= {"AWS_ENDPOINT_URL_EC2": control, "AWS_ENDPOINT_URL_ROUTE_53": control}
            return made


def described(address: CloudAddress) -> dict[str, Any]:
    """The cloud as data: what `yunhe lab up -o json` shows."""
    control = address.control
    return {
        "name": address.cloud,
        "provider": address.provider,
        "region": address.region,
        "zones": list(address.zones),
        "endpoints": {
            "objects": address.bucket.endpoint,
            "control": control.endpoint if control is not None else None,
            "volumes": address.volumes.endpoint if address.volumes is not None else None,
        },
        "buckets": {
            "standard": address.bucket.bucket,
            "express": {zone: store.bucket for zone, store in address.express.items()},
        },
        "account": {"id": control.account, "group": control.group} if control is not None else None,
        "dns_zone": DNS_ZONE if control is not None else None,
        "credentials_file": address.bucket.credentials_file,
        "environment": environment(address),
    }


def exports(variables: Mapping[str, str]) -> str:
    """Shell lines."""
    return "\n".join(f"export {name}='{value}'" for name, value in variables.items())
