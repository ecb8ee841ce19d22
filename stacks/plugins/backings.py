"""Resources that are real ones of the lab: buckets and volumes through the cloud's own SDK, DNS zones through the lab's
own call, for neither the adapters nor the lab's DNS APIs make zones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from providers.base.buckets import Bucket
from providers.base.errors import Conflict, Unavailable
from providers.base.volume_api import CloudVolume, VolumeApi, VolumeSpec
from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

PAGE = 1000
PAGES_MAX = 1000
"""Pages of objects that `forceDestroy` removes from one bucket, in one call."""


@dataclass(frozen=True, slots=True)
class BucketBacking:
    """A bucket or container. `name`: the input that names it."""

    name: str

    def create(self, site: Site, inputs: Plain) -> str | None:
        bucket = str(inputs[self.name])

        async def make(store: Bucket) -> None:
            if await store.bucket_exists() and bucket not in site.own_buckets():
                raise Conflict(f"bucket {bucket} is there already", hint="choose another name, or import it")
            await store.ensure_bucket()

        site.with_bucket(bucket, make)
        return None

    def read(self, site: Site, id_: str, inputs: Plain) -> Plain | None:
        bucket = str(inputs.get(self.name) or id_.rpartition("/")[2])
        return {self.name: bucket} if site.with_bucket(bucket, lambda store: store.bucket_exists()) else None

    def delete(self, site: Site, id_: str, inputs: Plain) -> None:
        async def remove(store: Bucket) -> None:
            if inputs.get("forceDestroy"):
                await _empty(store)
            await store.remove_bucket()

        site.with_bucket(str(inputs[self.name]), remove)


async def _empty(store: Bucket) -> None:
    for _ in range(PAGES_MAX):
        if not await store.bucket_exists():
            return
        page = await store.list("", limit=PAGE)
        if not page:
            return
        await store.delete([found.key for found in page])
    raise Unavailable(f"more than {PAGES_MAX * PAGE} objects", hint="run it again to go on")


@dataclass(frozen=True, slots=True)
class VolumeBacking:
    """A block volume. `spec`: what the inputs ask for; `live`: inputs as the cloud shows them; `key`: the volume API's
    id of a resource's id."""

    spec: Callable[[Site, Plain], VolumeSpec]
    live: Callable[[Site, CloudVolume], Plain]
    key: Callable[[str], str] = lambda id_: id_
    adopts_id: bool = True
    """Whether the API's id is the resource's."""

    def create(self, site: Site, inputs: Plain) -> str | None:
        spec = self.spec(site, inputs)

        async def make(volumes: VolumeApi) -> str:
            if any(found.name == spec.name for found in await volumes.describe()):
                # The adapters know a volume by its name, and would take somebody else's for it.
                raise Conflict(f"a volume {spec.name} is there already", hint="choose another name, or import it")
            return (await volumes.create(spec)).id

        made = site.with_volumes(make)
        return made if self.adopts_id else None

    def read(self, site: Site, id_: str, inputs: Plain) -> Plain | None:
        async def look(volumes: VolumeApi) -> CloudVolume | None:
            return next(iter(await volumes.describe([self.key(id_)])), None)

        found = site.with_volumes(look)
        return self.live(site, found) if found is not None else None

    def delete(self, site: Site, id_: str, inputs: Plain) -> None:
        site.with_volumes(lambda volumes: volumes.delete(self.key(id_)))


@dataclass(frozen=True, slots=True)
class ZoneBacking:
    """A public DNS zone. `name`: the input with its domain. `adopts_id`: whether the lab's id is the resource's."""

    name: str
    adopts_id: bool = True

    def create(self, site: Site, inputs: Plain) -> str | None:
        domain = _domain(inputs[self.name])
        if domain in _zones(site):
            raise Conflict(f"zone {domain} is there already", hint="choose another domain, or import it")
        made = site.admin.call("POST", "/-/dns", {"add": [domain]})
        id_ = next(str(zone["id"]) for zone in made["zones"] if zone["name"] == domain)
        return id_ if self.adopts_id else None

    def read(self, site: Site, id_: str, inputs: Plain) -> Plain | None:
        wanted = _domain(inputs.get(self.name, ""))
        found = next((n for n, zone in _zones(site).items() if n == wanted or (not wanted and zone == id_)), None)
        return None if found is None else {self.name: inputs.get(self.name) or found}

    def delete(self, site: Site, id_: str, inputs: Plain) -> None:
        if _domain(inputs[self.name]) in _zones(site):
            site.admin.call("POST", "/-/dns", {"remove": [_domain(inputs[self.name])]})


def _zones(site: Site) -> dict[str, str]:
    """Ids by domain."""
    return {str(zone["name"]): str(zone["id"]) for zone in site.admin.call("GET", "/-/dns")["zones"]}


def _domain(text: object) -> str:
    return str(text).lower().rstrip(".")
