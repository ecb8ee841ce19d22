"""What the GCS dialect says and reads on the wire: refusals, objects as JSON, bodies in several parts, hashes,
preconditions."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

from providers.base.errors import AlreadyExists, Conflict, Corrupt, Full, Invalid, NotFound, Unavailable, YunheError
from providers.lab.storage import Meta
from providers.lab.storage_payload import Payload
from providers.lab.wire import Reply, Request

JSON = {"Content-Type": "application/json; charset=UTF-8"}
HEAD_BYTES_MAX = 1 << 20
"""Of a multipart body's metadata part."""
PRIVATE = "~"
"""In front of what the dialect keeps among an object's attributes for itself."""

CONDITION_FAILED = "At least one of the pre-conditions you specified did not hold."
NO_BUCKET = "The specified bucket does not exist."

_BUCKET = re.compile(r"[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]")


class Refused(Exception):
    """A refusal as the API states it: status, `reason`, sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def refusal_of(error: YunheError) -> Refused:
    """What a failure of the storage is on this wire."""
    if isinstance(error, AlreadyExists):
        return Refused(412, "conditionNotMet", CONDITION_FAILED)
    if isinstance(error, Conflict):
        return Refused(409, "conflict", "The bucket you tried to delete is not empty.")
    if isinstance(error, NotFound):
        if "upload" in error.fields:
            return Refused(404, "notFound", "No such upload session")
        return Refused(404, "notFound", NO_BUCKET if "bucket" in error.fields else str(error))
    if isinstance(error, Invalid):
        return Refused(400, "invalid", str(error))
    kinds = {Corrupt: 500, Full: 503, Unavailable: 503}
    return Refused(
        next((status for kind, status in kinds.items() if isinstance(error, kind)), 500), "backendError", str(error)
    )


def error_reply(status: int, reason: str, message: str) -> Reply:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return json_reply(status, {"error": {"code": status, "message": message, "errors": errors}})


def json_reply(status: int, value: Any) -> Reply:
    return Reply(status, JSON, json.dumps(value).encode())


def no_object(bucket: str, key: str) -> Refused:
    return Refused(404, "notFound", f"No such object: {bucket}/{key}")


def check_bucket_name(name: str) -> None:
    """
    Raises:
        Refused: 400, with the sentence that Google has for it.
    """
    parts = name.split(".")
    if _BUCKET.fullmatch(name) is None or name.startswith("goog") or any(not 1 <= len(part) <= 63 for part in parts):
        raise Refused(400, "invalid", f"Invalid bucket name: '{name}'")


def body_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object; {} when there is none.

    Raises:
        Refused
    """
    try:
        plain = json.loads(request.body) if request.payload.size else {}
    except ValueError as error:
        raise Refused(400, "parseError", "Parse Error") from error
    if not isinstance(plain, dict):
        raise Refused(400, "parseError", "Parse Error")
    return plain


def multipart_related(request: Request) -> tuple[dict[str, Any], Payload]:
    """The JSON resource and the media of a `multipart/related` body; the media is a payload of its own. The media's
    content type is the object's where the resource has none.

    Raises:
        Refused
    """
    boundary = _boundary(request.headers.get("content-type", ""))
    payload, mark = request.payload, b"--" + boundary
    head = payload.read(0, min(payload.size, HEAD_BYTES_MAX))
    first = head.find(mark)
    second = head.find(b"\r\n" + mark, first + len(mark))
    start = head.find(b"\r\n\r\n", second) + 4
    if first < 0 or second < 0 or start < 4:
        raise Refused(400, "badContent", "Malformed multipart body.")
    try:
        resource = json.loads(head[first:second].partition(b"\r\n\r\n")[2])
    except ValueError as error:
        raise Refused(400, "parseError", "Parse Error") from error
    tail_at = max(payload.size - len(mark) - 16, start)
    end = payload.read(tail_at, payload.size - tail_at).rfind(b"\r\n" + mark + b"--")
    if end < 0 or not isinstance(resource, dict):
        raise Refused(400, "badContent", "Malformed multipart body.")
    kind = re.search(rb"(?im)^content-type:\s*([^\r\n]+)", head[second:start])
    if kind is not None:
        resource.setdefault("contentType", kind[1].decode("latin-1").strip())
    return resource, payload.slice(start, tail_at + end - start)


def _boundary(content_type: str) -> bytes:
    found = re.search(r'boundary=("([^"]+)"|[^;\s]+)', content_type)
    if found is None:
        raise Refused(400, "badContent", "Missing boundary in the content type.")
    return (found[2] or found[1]).encode()


# ---- hashes


def hashes_of(request: Request, resource: Mapping[str, Any]) -> dict[str, str]:
    """`crc32c` and `md5` that the sender states, in the resource and in x-goog-hash, base64."""
    stated = {}
    for pair in request.headers.get("x-goog-hash", "").split(","):
        name, _, value = pair.strip().partition("=")
        if name in ("crc32c", "md5"):
            stated[name] = value
    for field, name in (("crc32c", "crc32c"), ("md5Hash", "md5")):
        if resource.get(field):
            stated[name] = str(resource[field])
    return stated


def check_hashes(stated: Mapping[str, str], crc32c: int, md5: Callable[[], bytes | None]) -> None:
    """
    Raises:
        Refused: one does not match.
    """
    actual = encode(crc32c.to_bytes(4, "big"))
    if stated.get("crc32c", actual) != actual:
        words = f'Provided CRC32C "{stated["crc32c"]}" doesn\'t match calculated CRC32C "{actual}".'
        raise Refused(400, "invalid", words)
    if "md5" in stated:
        digest = md5()
        if digest is not None and encode(digest) != stated["md5"]:
            words = f'Provided MD5 hash "{stated["md5"]}" doesn\'t match calculated MD5 hash "{encode(digest)}".'
            raise Refused(400, "invalid", words)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- preconditions


def conditions_of(query: Mapping[str, str], prefix: str = "if") -> dict[str, int]:
    """`GenerationMatch`, `GenerationNotMatch`, `MetagenerationMatch`, `MetagenerationNotMatch` as asked for.

    Raises:
        Refused
    """
    found = {}
    for name in ("GenerationMatch", "GenerationNotMatch", "MetagenerationMatch", "MetagenerationNotMatch"):
        if f"{prefix}{name}" in query:
            try:
                found[name] = int(query[f"{prefix}{name}"])
            except ValueError as error:
                raise Refused(400, "invalid", f"Invalid value for '{prefix}{name}'") from error
    return found


def check_conditions(conditions: Mapping[str, int], meta: Meta | None, *, reading: bool = False) -> None:
    """`meta` None: there is no object, whose generation is 0.

    Raises:
        Refused: 412, or 304 for a read of what the caller has.
    """
    generation, metageneration = (generation_of(meta), 1) if meta else (0, 0)
    actual = {"Generation": generation, "Metageneration": metageneration}
    for name, wanted in conditions.items():
        what, negated = name.removesuffix("NotMatch").removesuffix("Match"), name.endswith("NotMatch")
        if (actual[what] == wanted) == negated:
            if negated and reading:
                raise Refused(304, "notModified", "Not Modified")
            raise Refused(412, "conditionNotMet", CONDITION_FAILED)


# ---- objects


def generation_of(meta: Meta) -> int:
    """Google's are microseconds of the write; here the storage's own count is added, so that each is another."""
    return meta.modified_ms * 1_000_000 + meta.generation % 1_000_000


def resource_of(bucket: str, key: str, meta: Meta, endpoint: str) -> dict[str, Any]:
    """An object as the API shows it."""
    generation, changed = str(generation_of(meta)), _time(meta.modified_ms)
    shown = {name: value for name, value in meta.attributes.items() if not name.startswith(PRIVATE)}
    plain: dict[str, Any] = {
        "kind": "storage#object",
        "id": f"{bucket}/{key}/{generation}",
        "selfLink": f"{endpoint}/storage/v1/b/{bucket}/o/{key}",
        "bucket": bucket,
        "name": key,
        "size": str(meta.size),
        "etag": encode(generation.encode()),
        "generation": generation,
        "metageneration": "1",
        "contentType": shown.pop("contentType", "application/octet-stream"),
        "storageClass": "STANDARD",
        "timeCreated": changed,
        "updated": changed,
        "crc32c": encode(meta.crc32c.to_bytes(4, "big")),
    }
    if meta.md5 is not None:
        plain["md5Hash"] = encode(meta.md5)
    if f"{PRIVATE}components" in meta.attributes:
        plain["componentCount"] = int(meta.attributes[f"{PRIVATE}components"])
    if shown:
        plain["metadata"] = shown
    return plain


def attributes_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """What is kept of the metadata that came with an upload."""
    metadata = resource.get("metadata") or {}
    kept = {str(name): str(value) for name, value in metadata.items() if not str(name).startswith(PRIVATE)}
    if resource.get("contentType"):
        kept["contentType"] = str(resource["contentType"])
    return kept


def media_headers(meta: Meta) -> dict[str, str]:
    """Of an answer that carries an object's bytes."""
    hashes = [f"crc32c={encode(meta.crc32c.to_bytes(4, 'big'))}"]
    if meta.md5 is not None:
        hashes.append(f"md5={encode(meta.md5)}")
    generation = str(generation_of(meta))
    return {
        "Content-Type": meta.attributes.get("contentType", "application/octet-stream"),
        "ETag": encode(generation.encode()),
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "X-Goog-Generation": generation,
        "X-Goog-Metageneration": "1",
        "X-Goog-Stored-Content-Length": str(meta.size),
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Storage-Class": "STANDARD",
        "X-Goog-Hash": ",".join(hashes),
    }


def _time(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
