"""EBS volumes through EC2's API (botocore): `VolumeApi`.

EBS knows a volume by an id of its own; the caller's name is its tags `Name` and `yunhe:volume`. A create carries a
ClientToken made of what is asked for, so that a repetition, by whichever process, gets the same volume.

Least privilege (IAM actions): ec2:CreateVolume, ec2:CreateTags (with the condition ec2:CreateAction = CreateVolume),
ec2:AttachVolume, ec2:DetachVolume, ec2:DeleteVolume (these on resources with the tag `yunhe:volume`, attach and detach
on the instances too), and, on *, ec2:DescribeVolumes, ec2:DescribeInstances, ec2:DescribeInstanceTypes,
ec2:DescribeAvailabilityZones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from providers.aws.account import CONTROL, open_calls, open_client
from providers.aws.errors import code_of
from providers.aws.instances import Ec2Instances
from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound, OutcomeUnknown, YunheError
from providers.base.instances import Instance
from providers.base.registry import AccountAddress
from providers.base.volume_api import Attachment, AttachmentState, CloudVolume, VolumeApi, VolumeSpec
from providers.base.volume_limits import GIB, VolumeLimits, check_spec
from providers.base.waiting import WaitSettings, wait_for

CLASSES = {
    "gp3": VolumeLimits((1, 1), 1, (1, 65536), 80_000, 3000, 2000, 500),
    "io1": VolumeLimits((1, 1), 16, (4, 16384), 64_000, 100, 0, 50),
    "io2": VolumeLimits((1, 1), 16, (4, 65536), 256_000, 100, 0, 1000),
}
"""EBS user guide and the facts in `capabilities.py`. One zone always: EBS has no regional volume."""

SHARED_MAX = 16
"""Instances of one multi-attach volume. EBS has no smaller limit to set: a share_max above one gives this."""

IOPS_DEFAULT = 3000
"""Of io1 and io2, which have no default of their own; fewer where the size does not allow as many."""

NAME_TAG = "yunhe:volume"

FILTER_VALUES_MAX = 200
"""Values in one filter (API reference, Filter)."""

DEVICES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop") + tuple(
    f"/dev/xvd{first}{second}" for first in "bc" for second in "abcdefghijklmnopqrstuvwxyz"
)
"""Names that an attachment may be given (EC2 user guide, device naming); on Nitro the kernel's name is another."""

DEVICE_TRIES_MAX = 5
"""Attempts to find a free device name while others attach to the same machine."""

TOKEN_TRIES_MAX = 3
"""Tokens tried when EC2 answers with a volume that has been deleted since."""

LOOKS_MAX = 5
"""Looks in a row that do not find a volume, until it is taken for gone: EC2 is eventually consistent, and a volume that
was just made may not be listed yet."""

_GONE = ("deleting", "deleted")
_ZONE_ID = re.compile(r"[a-z]{3,6}\d-([a-z]{3}\d-)?az\d+")


def open_volume_api(
    address: AccountAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    wait: WaitSettings | None = None,
) -> VolumeApi:
    """Open EBS in the address's region; nothing is sent yet.

    Raises:
        Invalid: unreadable credentials.
    """
    settings = settings or CONTROL
    client = open_client("ec2", address, settings)
    calls = open_calls("ec2", address, settings, clock, rng)
    return EbsVolumes(client, calls, wait or WaitSettings(), clock)


class EbsVolumes:
    """See `providers.base.volume_api.VolumeApi`."""

    def __init__(self, client: Any, calls: SdkCalls, wait: WaitSettings, clock: Clock) -> None:
        self._client = client
        self._calls = calls
        self._wait = wait
        self._clock = clock
        self._instances = Ec2Instances(client, calls)

    async def create(self, spec: VolumeSpec) -> CloudVolume:
        check_spec(spec, CLASSES)
        zone = spec.zones[0]
        if not _ZONE_ID.fullmatch(zone):
            hint = "zone ids look like use1-az4; names like us-east-1a mean another zone in each account"
            raise Invalid(f"{zone!r} is not an AWS zone id", hint=hint)
        dead: list[str] = []
        for _ in range(TOKEN_TRIES_MAX):
            found = await self._named(spec.name) or await self._create(spec, dead)
            if found is None:
                dead.append("mismatch")
                continue
            volume_id = str(found["VolumeId"])
            if found["State"] not in _GONE:
                ready = await self._until(f"creating {spec.name}", volume_id, _usable)
                if ready is not None:
                    volume = await self._shown(ready)
                    _check_same(volume, spec)
                    return volume
            # The token's volume has been deleted since: ask for another with a token that says so.
            dead.append(volume_id)
        raise Conflict(f"volumes named {spec.name} are deleted as soon as they are made: {', '.join(dead)}")

    async def _create(self, spec: VolumeSpec, dead: Sequence[str]) -> Any | None:
        """Ask for the volume. None: the token was spent on one with other properties, and no volume has that name: it
        was deleted since."""
        zones = await self._instances.zone_names()
        zone = spec.zones[0]
        if zone not in zones:
            raise Invalid(f"this account has no zone {zone}", hint=f"it has {', '.join(sorted(zones))}")
        token = _token(spec, dead)
        call = partial(self._client.create_volume, AvailabilityZone=zones[zone], ClientToken=token, **_asked(spec))
        try:
            return await self._calls.repeated(spec.name, call, changes=True)
        except Invalid as error:
            if code_of(error.__cause__) != "IdempotentParameterMismatch":
                raise
        for _ in range(LOOKS_MAX):
            # Another process may have made it this moment, with other properties, and it may not be listed yet.
            found = await self._named(spec.name)
            if found is not None:
                return found
            await self._clock.sleep_ms(self._wait.poll_ms)
        return None

    async def attach(self, volume_id: str, instance: str) -> CloudVolume:
        raw = await self._existing(volume_id)
        volume = await self._shown(raw)
        machine = await self._machine(instance)
        here = _attachment(volume, instance)
        if here is not None and here.state in (AttachmentState.DETACHING, AttachmentState.BUSY):
            await self._until(f"detaching {volume_id}", volume_id, lambda raw: _state(raw, instance) is None)
            here = None
        if here is None:
            await self._check_attachable(volume, machine)
            await self._attach(volume_id, instance)
        done = await self._until(
            f"attaching {volume_id} to {instance}", volume_id, lambda raw: _state(raw, instance) == "attached"
        )
        return await self._shown(done or await self._existing(volume_id))

    async def detach(self, volume_id: str, instance: str, *, force: bool = False) -> CloudVolume:
        raw = await self._existing(volume_id)
        state = _state(raw, instance)
        if state is None:
            return await self._shown(raw)
        if force or state not in ("detaching", "busy"):
            call = partial(self._client.detach_volume, VolumeId=volume_id, InstanceId=instance, Force=force)
            try:
                await self._calls.repeated(volume_id, call, changes=True)
            except (NotFound, Conflict) as error:
                # Detached meanwhile, by an earlier attempt or by somebody else: the look below decides.
                if code_of(error.__cause__) not in ("IncorrectState", "InvalidAttachment.NotFound"):
                    raise
        hint = "" if force else "the guest may still use it: unmount it there, or detach by force"
        done = await self._until(
            f"detaching {volume_id} from {instance}", volume_id, lambda raw: _state(raw, instance) is None, hint=hint
        )
        return await self._shown(done or await self._existing(volume_id))

    async def take_over(self, volume_id: str, victim: str, instance: str) -> CloudVolume:
        await self.detach(volume_id, victim, force=True)
        return await self.attach(volume_id, instance)

    async def describe(self, volume_ids: Sequence[str] | None = None) -> Sequence[CloudVolume]:
        if volume_ids is None:
            found = await self._list([])
        else:
            found = []
            for at in range(0, len(volume_ids), FILTER_VALUES_MAX):
                some = list(volume_ids[at : at + FILTER_VALUES_MAX])
                found += await self._list([{"Name": "volume-id", "Values": some}])
        return [await self._shown(raw) for raw in found if raw["State"] != "deleted"]

    async def delete(self, volume_id: str) -> None:
        try:
            await self._calls.repeated(volume_id, partial(self._client.delete_volume, VolumeId=volume_id), changes=True)
        except NotFound:
            return
        await self._until(f"deleting {volume_id}", volume_id, lambda raw: raw["State"] == "deleted", gone_after=0)

    async def close(self) -> None:
        self._calls.close()
        self._client.close()

    # ---- attaching

    async def _machine(self, instance: str) -> Instance:
        found = await self._instances.describe([instance])
        if not found:
            raise NotFound(f"no instance {instance}")
        return found[0]

    async def _check_attachable(self, volume: CloudVolume, machine: Instance) -> None:
        if machine.zone not in volume.zones:
            raise Invalid(
                f"{volume.id} is in {', '.join(volume.zones)}, {machine.id} in {machine.zone}",
                hint="an EBS volume is attached in its own zone only",
            )
        if volume.share_max > 1 and machine.shares_volumes is False:
            raise Invalid(
                f"a {machine.kind} cannot take {volume.id}, which has multi-attach", hint="use a Nitro instance type"
            )
        if len(volume.attachments) >= volume.share_max:
            holders = ", ".join(each.instance for each in volume.attachments)
            raise Conflict(f"{volume.id} is attached to {holders}", hint="detach one of them first")

    async def _attach(self, volume_id: str, instance: str) -> None:
        """Begin to attach, under a device name that is free there."""
        refused: set[str] = set()
        for _ in range(DEVICE_TRIES_MAX):
            attached = await self._list([{"Name": "attachment.instance-id", "Values": [instance]}])
            used = {a["Device"] for raw in attached for a in raw["Attachments"] if a["InstanceId"] == instance}
            free = next((name for name in DEVICES if name not in used | refused), None)
            if free is None:
                raise Invalid(f"{instance} has no free device name", hint="detach another volume there")
            call = partial(self._client.attach_volume, VolumeId=volume_id, InstanceId=instance, Device=free)
            try:
                # Once: a repetition of a call that had succeeded is refused. The look after it says what happened.
                await self._calls.once(volume_id, call, changes=True)
                return
            except (OutcomeUnknown, Conflict):
                if _state(await self._existing(volume_id), instance) is None:
                    raise
                return
            except Invalid as error:
                if code_of(error.__cause__) != "InvalidParameterValue" or free not in error.message:
                    raise _attach_refusal(error) from error
                refused.add(free)
        raise Conflict(f"every device name tried at {instance} was taken meanwhile")

    # ---- looking

    async def _list(self, filters: list[dict[str, Any]]) -> list[Any]:
        found: list[Any] = []
        more: dict[str, str] = {}
        while True:
            call = partial(self._client.describe_volumes, Filters=filters, MaxResults=500, **more)
            page = await self._calls.repeated("volumes", call)
            found += page["Volumes"]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    async def _look(self, volume_id: str) -> Any | None:
        found = await self._list([{"Name": "volume-id", "Values": [volume_id]}])
        return found[0] if found else None

    async def _existing(self, volume_id: str) -> Any:
        found = await self._look(volume_id)
        if found is None or found["State"] in _GONE:
            raise NotFound(f"no volume {volume_id}")
        return found

    async def _named(self, name: str) -> Any | None:
        """The volume of that name; the oldest one should there be several."""
        found = await self._list([{"Name": f"tag:{NAME_TAG}", "Values": [name]}])
        alive = sorted((raw for raw in found if raw["State"] not in _GONE), key=lambda raw: str(raw["CreateTime"]))
        return alive[0] if alive else None

    async def _until(
        self,
        subject: str,
        volume_id: str,
        done: Callable[[Any], bool],
        *,
        hint: str = "",
        gone_after: int = LOOKS_MAX,
    ) -> Any | None:
        """The volume once `done`; None when it is gone: not found by more than `gone_after` looks in a row."""
        missed = 0

        async def look() -> tuple[Any | None] | None:
            nonlocal missed
            raw = await self._look(volume_id)
            if raw is None or raw["State"] == "deleted":
                missed += 1
                return (None,) if missed > gone_after else None
            missed = 0
            if raw["State"] == "error":
                raise Invalid(f"EC2 could not make {volume_id}", hint="delete it; see its events for the reason")
            return (raw,) if done(raw) else None

        (found,) = await wait_for(subject, look, self._wait, self._clock, hint=hint)
        return found

    async def _shown(self, raw: Any) -> CloudVolume:
        zone = raw.get("AvailabilityZoneId") or await self._instances.zone_id(raw["AvailabilityZone"])
        tags = {tag["Key"]: tag["Value"] for tag in raw.get("Tags", ())}
        return CloudVolume(
            id=raw["VolumeId"],
            name=tags.get(NAME_TAG, tags.get("Name", "")),
            kind=raw["VolumeType"],
            size_bytes=raw["Size"] * GIB,
            zones=(zone,),
            share_max=SHARED_MAX if raw.get("MultiAttachEnabled") else 1,
            attachments=tuple(
                Attachment(a["InstanceId"], AttachmentState(a["State"]), a.get("Device", ""))
                for a in raw.get("Attachments", ())
                if a["State"] != "detached"
            ),
            ready=raw["State"] in ("available", "in-use"),
        )


def _asked(spec: VolumeSpec) -> dict[str, Any]:
    """CreateVolume's parameters, but for zone and token."""
    gib = spec.size_bytes // GIB
    tags = {**dict(spec.tags), "Name": spec.name, NAME_TAG: spec.name}
    asked: dict[str, Any] = {
        "Size": gib,
        "VolumeType": spec.kind,
        "TagSpecifications": [
            {"ResourceType": "volume", "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())]}
        ],
    }
    iops = spec.iops
    if iops is None and spec.kind != "gp3":
        iops = min(IOPS_DEFAULT, gib * (CLASSES[spec.kind].iops_per_gib_max or IOPS_DEFAULT))
    if iops is not None:
        asked["Iops"] = iops
    if spec.mib_s is not None:
        asked["Throughput"] = spec.mib_s
    if spec.share_max > 1:
        asked["MultiAttachEnabled"] = True
    return asked


def _token(spec: VolumeSpec, dead: Sequence[str]) -> str:
    """The same for the same request, in every process; 64 characters, EC2's most. Of what is asked for only the name
    and zone go in: the same name with other properties is then a mismatch rather than a second volume."""
    plain = json.dumps([spec.name, sorted(spec.zones), list(dead)])
    return hashlib.sha256(plain.encode()).hexdigest()


def _check_same(volume: CloudVolume, spec: VolumeSpec) -> None:
    wanted = replace(spec, zones=tuple(sorted(spec.zones)))
    same = (
        (volume.kind, volume.size_bytes) == (wanted.kind, wanted.size_bytes)
        and tuple(sorted(volume.zones)) == wanted.zones
        and (volume.share_max > 1) == (wanted.share_max > 1)
    )
    if not same:
        raise Invalid(
            f"{spec.name} exists with other properties: {volume.kind}, {volume.size_bytes} bytes, "
            f"{', '.join(volume.zones)}, shared by {volume.share_max}",
            hint="choose another name, or delete it",
            volume=volume.id,
        )


def _usable(raw: Any) -> bool:
    return raw["State"] in ("available", "in-use") or raw["State"] in _GONE


def _state(raw: Any, instance: str) -> str | None:
    """The state of the attachment to `instance`, None where there is none."""
    found = [a["State"] for a in raw.get("Attachments", ()) if a["InstanceId"] == instance]
    return found[0] if found and found[0] != "detached" else None


def _attachment(volume: CloudVolume, instance: str) -> Attachment | None:
    return next((each for each in volume.attachments if each.instance == instance), None)


def _attach_refusal(error: YunheError) -> Invalid:
    hint = "detach another volume there" if code_of(error.__cause__) == "AttachmentLimitExceeded" else error.hint
    return Invalid(error.message, hint=hint)
