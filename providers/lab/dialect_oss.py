"""Aliyun OSS over the storage core, path style: what oss2 and alibabacloud-oss-v2 send, signatures 1 and 4 checked.

Requests on objects are in `dialect_oss_objects.py`, on uploads in parts in `dialect_oss_uploads.py`, listings in
`dialect_oss_listing.py`. Sources: the OSS API reference and both SDKs' own parsing. Left out: versions (but that a
versioned bucket gives itself away and ignores forbid-overwrite), ACLs, symbolic links, virtual-host style.

`credentials`: `access_key`, `secret_key`; optionally `region` (signatures for another one are refused) and `elsewhere`
({bucket: endpoint}: buckets of another region).
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Conflict, Corrupt, Full, Invalid, NotFound, WrongOffset, YunheError
from providers.lab import dialect_oss_listing as listing
from providers.lab.dialect_oss_auth import OssAuth, Refused
from providers.lab.dialect_oss_objects import Objects
from providers.lab.dialect_oss_uploads import Uploads
from providers.lab.storage import Storage
from providers.lab.wire import Reply, Request, element, local, xml

XML = {"Content-Type": "application/xml"}

SETTINGS_BUCKET = "_oss-settings"
"""Where the buckets' own settings are kept: no client can name it, for OSS takes no underscore."""

APPENDS_MAX = 1 << 30
"""OSS counts no appends, only bytes (page appendobject)."""

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class OssDialect:
    """See the module."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        storage.parts_max = APPENDS_MAX
        region = credentials.get("region")
        self._region = str(region or "lab")
        self._elsewhere = dict(credentials.get("elsewhere") or {})
        self._auth = OssAuth(
            str(credentials["access_key"]), str(credentials["secret_key"]), str(region) if region else None, clock
        )
        self._numbers = itertools.count(1)
        self._versioning: dict[str, str] = {}
        if storage.has_bucket(SETTINGS_BUCKET):
            rows, _ = storage.list(SETTINGS_BUCKET, "", limit=100_000)
            for name, _ in rows:
                settings = json.loads(storage.read(SETTINGS_BUCKET, name, 0, None)[1])
                self._versioning[name] = settings["versioning"]
        self._objects = Objects(storage, self._versioned)
        self._uploads = Uploads(storage, self._versioned)

    def _versioned(self, bucket: str) -> bool:
        return bool(self._versioning.get(bucket))

    def error(self, status: int, code: str, message: str) -> Reply:
        return self._error(Refused(status, code, message))

    def _error(self, refused: Refused) -> Reply:
        request_id = self._request_id()
        fields = {
            "Code": refused.code,
            "Message": refused.message,
            "RequestId": request_id,
            "HostId": "oss.lab",
            **refused.fields,
        }
        body = xml(element("Error", *fields.items()))
        encoded = base64.b64encode(body).decode()
        # HEAD answers have no body: OSS repeats the error in a header, which the SDKs read.
        headers = {**XML, "x-oss-request-id": request_id, "x-oss-err": encoded, **refused.headers}
        return Reply(refused.status, headers, body)

    def _request_id(self) -> str:
        return f"{next(self._numbers):024X}"

    def answer(self, request: Request) -> Reply:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        try:
            request = self._auth.check(request)
            self._check_bucket(bucket)
            reply = self._answer(request, bucket, key)
        except Refused as refused:
            reply = self._error(refused)
        except YunheError as error:
            reply = self._error(_refused(error))
        headers = {"x-oss-request-id": self._request_id(), **reply.headers}
        return Reply(reply.status, headers, b"" if request.method == "HEAD" else reply.body)

    def _check_bucket(self, bucket: str) -> None:
        if not bucket:
            raise Refused(501, "NotImplemented", "requests on the service itself are not emulated")
        if _BUCKET_NAME.fullmatch(bucket) is None:
            raise Refused(400, "InvalidBucketName", "The specified bucket is not valid.", fields={"BucketName": bucket})
        if bucket in self._elsewhere:
            message = (
                "The bucket you are attempting to access must be addressed using the specified endpoint. "
                "Please send all future requests to this endpoint."
            )
            fields = {"Bucket": bucket, "Endpoint": str(self._elsewhere[bucket])}
            raise Refused(403, "AccessDenied", message, fields=fields)

    def _answer(self, request: Request, bucket: str, key: str) -> Reply:
        if key:
            if "uploads" in request.query or "uploadId" in request.query:
                return self._uploads.answer(request, bucket, key)
            return self._objects.answer(request, bucket, key)
        query = request.query
        match request.method:
            case "PUT" if "versioning" in query:
                return self._set_versioning(request, bucket)
            case "PUT" if not query:
                # Creating one's own bucket again is no error (OSS API reference, PutBucket).
                self._storage.create_bucket(bucket)
                return Reply(200, {"Location": f"/{bucket}"})
            case "DELETE" if not query:
                self._remove(bucket)
                return Reply(204)
            case "GET" if "bucketInfo" in query:
                return self._bucket_info(bucket)
            case "GET" if "location" in query:
                self._check_exists(bucket)
                return Reply(200, XML, xml(_text("LocationConstraint", f"oss-{self._region}")))
            case "GET" if "versioning" in query:
                self._check_exists(bucket)
                status = self._versioning.get(bucket)
                rows = [("Status", status)] if status else []
                return Reply(200, XML, xml(element("VersioningConfiguration", *rows)))
            case "GET" if "uploads" in query:
                return self._uploads.list(request, bucket)
            case "GET" if query.get("list-type") == "2":
                return Reply(200, XML, listing.page_v2(self._storage, request, bucket))
            case "GET" if not (query.keys() - listing.V1_ARGUMENTS):
                return Reply(200, XML, listing.page_v1(self._storage, request, bucket))
            case "POST" if "delete" in query:
                return self._objects.delete_many(request, bucket)
        raise Refused(501, "NotImplemented", f"{request.method} {request.raw_path}?{request.raw_query} is not emulated")

    def _check_exists(self, bucket: str) -> None:
        if not self._storage.has_bucket(bucket):
            raise _no_bucket(bucket)

    def _remove(self, bucket: str) -> None:
        self._check_exists(bucket)
        if self._storage.uploads(bucket, ""):
            # Parts of unfinished uploads count (OSS API reference, DeleteBucket).
            raise Conflict("unfinished uploads", bucket=bucket)
        self._storage.remove_bucket(bucket)
        if self._versioning.pop(bucket, None):
            self._storage.delete(SETTINGS_BUCKET, [bucket])

    def _bucket_info(self, bucket: str) -> Reply:
        self._check_exists(bucket)
        rows: list[tuple[str, object]] = [
            ("Name", bucket),
            ("Location", f"oss-{self._region}"),
            ("StorageClass", "Standard"),
            ("DataRedundancyType", "ZRS"),
        ]
        if self._versioned(bucket):
            rows.append(("Versioning", self._versioning[bucket]))
        return Reply(200, XML, xml(element("BucketInfo", element("Bucket", *rows))))

    def _set_versioning(self, request: Request, bucket: str) -> Reply:
        self._check_exists(bucket)
        root = ElementTree.fromstring(request.body)
        status = next((found.text for found in root.iter() if local(found.tag) == "Status"), "")
        if status not in ("Enabled", "Suspended"):
            raise Refused(400, "MalformedXML", "Status is Enabled or Suspended.")
        self._storage.create_bucket(SETTINGS_BUCKET)
        self._storage.put(SETTINGS_BUCKET, bucket, json.dumps({"versioning": status}).encode())
        self._versioning[bucket] = status
        return Reply(200)


def _no_bucket(bucket: str) -> Refused:
    return Refused(404, "NoSuchBucket", "The specified bucket does not exist.", fields={"BucketName": bucket})


def _text(tag: str, text: str) -> ElementTree.Element:
    made = ElementTree.Element(tag)
    made.text = text
    return made


def _refused(error: YunheError) -> Refused:
    """The storage's errors in OSS's words."""
    fields = error.fields
    match error:
        case AlreadyExists():
            return Refused(409, "FileAlreadyExists", "The object you specified already exists.")
        case WrongOffset():
            actual = str(fields.get("actual", 0))
            return Refused(
                409,
                "PositionNotEqualToLength",
                "Position is not equal to file length.",
                headers={"x-oss-next-append-position": actual},
            )
        case Conflict() if "bucket" in fields:
            return Refused(409, "BucketNotEmpty", "The bucket you tried to delete is not empty.")
        case NotFound() if "upload" in fields:
            return Refused(404, "NoSuchUpload", "The specified upload does not exist.")
        case NotFound() if "bucket" in fields:
            return _no_bucket(str(fields["bucket"]))
        case NotFound():
            return Refused(404, "NoSuchKey", "The specified key does not exist.")
        case Invalid() if fields.get("code") == "NotAppendable":
            return Refused(409, "ObjectNotAppendable", "The object is not appendable")
        case Invalid() if fields.get("code") == "InvalidPart":
            return Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        case Invalid():
            return Refused(400, "InvalidArgument", str(error))
        case Full():
            return Refused(503, "ServiceUnavailable", str(error))
        case Corrupt():
            return Refused(500, "InternalError", str(error))
    return Refused(500, "InternalError", str(error))
