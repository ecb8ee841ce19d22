"""The Azures there are: the public one, China's and the United States government's, each with names of its own.

Sources: azure-mgmt-core 1.6 (`get_arm_endpoints`), azure-identity (`AzureAuthorityHosts`), the storage endpoints of the
sovereign clouds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cloud:
    """`resources`: Resource Manager's endpoint; `scope`: of its tokens; `authority`: the sign-in host; `blobs`: what
    follows a storage account's name."""

    resources: str
    scope: str
    authority: str
    blobs: str


PUBLIC = Cloud(
    "https://management.azure.com",
    "https://management.azure.com/.default",
    "login.microsoftonline.com",
    "blob.core.windows.net",
)
CHINA = Cloud(
    "https://management.chinacloudapi.cn",
    "https://management.chinacloudapi.cn/.default",
    "login.chinacloudapi.cn",
    "blob.core.chinacloudapi.cn",
)
GOVERNMENT = Cloud(
    "https://management.usgovcloudapi.net",
    "https://management.core.usgovcloudapi.net/.default",
    "login.microsoftonline.us",
    "blob.core.usgovcloudapi.net",
)


def cloud_of(region: str) -> Cloud:
    """The one that a region such as eastus, chinanorth3 or usgovvirginia is in."""
    if region.startswith("china"):
        return CHINA
    if region.startswith(("usgov", "usdod")):
        return GOVERNMENT
    return PUBLIC
