"""The lab's Cloud Storage, judged by Google's own SDK used as anybody would use it, and by the JSON API's documents
where the SDK cannot say it."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import google.oauth2.service_account
import pytest
import requests
from google.api_core.exceptions import BadRequest, GoogleAPICallError, NotFound, PreconditionFailed, Unauthorized
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage

from tests.conformance.google_keys import service_account
from tests.conformance.stores import ObjectServer, start_object_server

CHUNK = 256 << 10
BUCKET = "judged-by-sdk"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with start_object_server("gcp", tmp_path_factory.mktemp("gcs")) as running:
        yield running


def credentials(server: ObjectServer, **changes: Any) -> Any:
    info = {**service_account("lab-project", "yunhe"), "token_uri": f"{server.endpoint}/token", **changes}
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    made = google.oauth2.service_account.Credentials.from_service_account_info(info, scopes=scopes)
    # Otherwise it asks iamcredentials.googleapis.com in a thread of its own.
    made._is_regional_access_boundary_lookup_required = lambda: False
    return made


@pytest.fixture(scope="module")
def session(server: ObjectServer) -> AuthorizedSession:
    made = AuthorizedSession(credentials(server))
    made.trust_env = made._auth_request_session.trust_env = False
    return made


@pytest.fixture(scope="module")
def bucket(server: ObjectServer, session: AuthorizedSession) -> storage.Bucket:
    options = {"api_endpoint": server.endpoint}
    client = storage.Client("lab-project", credentials(server), _http=session, client_options=options)
    return client.create_bucket(BUCKET)


# ---- uploads


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7])
def test_sdk_uploads_a_stream_of_unknown_length_in_chunks(bucket: storage.Bucket, size: int) -> None:
    data = os.urandom(size)
    blob = bucket.blob(f"stream-{size}", chunk_size=CHUNK)
    with blob.open("wb", ignore_flush=True) as file:
        file.write(data)
    blob.reload()
    assert (blob.size, blob.download_as_bytes()) == (size, data)
    assert blob.crc32c and blob.generation


def test_sdk_uploads_a_file_in_chunks_with_metadata(bucket: storage.Bucket) -> None:
    data = os.urandom(2 * CHUNK + 5)
    blob = bucket.blob("in-chunks", chunk_size=CHUNK)
    blob.metadata = {"owner": "yunhe"}
    blob.upload_from_file(io.BytesIO(data), size=len(data), content_type="text/plain", checksum="crc32c")
    blob.reload()
    assert blob.download_as_bytes() == data
    assert (blob.content_type, blob.metadata) == ("text/plain", {"owner": "yunhe"})


def test_condition_of_a_resumable_upload_is_compared_when_the_object_is_made(
    server: ObjectServer, bucket: storage.Bucket, session: AuthorizedSession
) -> None:
    location = begin(server, session, "late", ifGenerationMatch="0")
    bucket.blob("late").upload_from_string(b"was first")
    answer = session.put(location, data=b"was second")
    assert answer.status_code == 412
    assert answer.json()["error"]["errors"][0]["reason"] == "conditionNotMet"
    assert bucket.blob("late").download_as_bytes() == b"was first"


def begin(server: ObjectServer, session: AuthorizedSession, name: str, **query: str) -> str:
    answer = session.post(
        f"{server.endpoint}/upload/storage/v1/b/{BUCKET}/o", params={"uploadType": "resumable", "name": name, **query}
    )
    assert answer.status_code == 200
    return answer.headers["Location"]


def span(session: AuthorizedSession, location: str, content_range: str, data: bytes = b"") -> requests.Response:
    return session.put(location, data=data, headers={"Content-Range": content_range}, allow_redirects=False)


def test_session_says_how_far_it_is_and_takes_up_there(server: ObjectServer, session: AuthorizedSession) -> None:
    location = begin(server, session, "resumed")
    assert "Range" not in span(session, location, "bytes */*").headers
    first = span(session, location, f"bytes 0-{CHUNK - 1}/*", b"a" * CHUNK)
    assert (first.status_code, first.headers["Range"]) == (308, f"bytes=0-{CHUNK - 1}")
    # The same chunk again, as after a lost answer, and a gap, which is refused.
    assert span(session, location, f"bytes 0-{CHUNK - 1}/*", b"a" * CHUNK).headers["Range"] == f"bytes=0-{CHUNK - 1}"
    assert span(session, location, f"bytes {2 * CHUNK}-{3 * CHUNK - 1}/*", b"c" * CHUNK).status_code == 400
    assert span(session, location, f"bytes {CHUNK}-{CHUNK + 9}/*", b"b" * 10).status_code == 400
    server.kill()
    server.start()
    assert span(session, location, "bytes */*").headers["Range"] == f"bytes=0-{CHUNK - 1}"
    done = span(session, location, f"bytes {CHUNK}-{CHUNK + 9}/{CHUNK + 10}", b"b" * 10)
    assert (done.status_code, done.json()["size"]) == (200, str(CHUNK + 10))
    # Asked again, an ended session shows what it made.
    assert span(session, location, "bytes */*").json()["generation"] == done.json()["generation"]


def test_cancelled_session_is_over_and_made_nothing(
    server: ObjectServer, session: AuthorizedSession, bucket: storage.Bucket
) -> None:
    location = begin(server, session, "cancelled")
    span(session, location, f"bytes 0-{CHUNK - 1}/*", b"a" * CHUNK)
    assert session.delete(location).status_code == 499
    assert span(session, location, "bytes */*").status_code in (404, 410)
    assert not bucket.blob("cancelled").exists()


@pytest.mark.parametrize("how", ["multipart", "media", "resumable"])
def test_damaged_upload_is_refused_and_makes_nothing(
    how: str, server: ObjectServer, session: AuthorizedSession, bucket: storage.Bucket
) -> None:
    wrong, name = base64.b64encode(b"oops").decode(), f"damaged-{how}"
    url, headers = f"{server.endpoint}/upload/storage/v1/b/{BUCKET}/o", {"X-Goog-Hash": f"crc32c={wrong}"}
    if how == "resumable":
        answer = session.put(begin(server, session, name), data=b"data", headers=headers)
    elif how == "media":
        answer = session.post(url, params={"uploadType": "media", "name": name}, data=b"data", headers=headers)
    else:
        body = f"--b\r\n\r\n{json.dumps({'name': name, 'crc32c': wrong})}\r\n--b\r\n\r\ndata\r\n--b--"
        kind = {"Content-Type": "multipart/related; boundary=b"}
        answer = session.post(url, params={"uploadType": "multipart"}, data=body, headers=kind)
    assert answer.status_code == 400
    assert not bucket.blob(name).exists()


# ---- preconditions


def test_generations_guard_reads_writes_and_deletes(bucket: storage.Bucket) -> None:
    blob = bucket.blob("guarded")
    blob.upload_from_string(b"1", if_generation_match=0)
    first = blob.generation
    with pytest.raises(PreconditionFailed):
        blob.upload_from_string(b"2", if_generation_match=0)
    blob.upload_from_string(b"2", if_generation_match=first)
    assert blob.generation > first
    with pytest.raises(PreconditionFailed):
        bucket.blob("guarded").upload_from_string(b"3", if_generation_match=first)
    with pytest.raises(PreconditionFailed):
        bucket.blob("guarded").delete(if_generation_match=first)
    with pytest.raises(PreconditionFailed):
        bucket.blob("guarded").delete(if_metageneration_match=7)
    with pytest.raises(PreconditionFailed):
        bucket.blob("guarded").download_as_bytes(if_generation_match=first)
    with pytest.raises(NotFound):
        bucket.blob("guarded", generation=first).download_as_bytes()
    assert bucket.blob("guarded", generation=blob.generation).download_as_bytes() == b"2"
    bucket.blob("guarded").delete(if_generation_match=blob.generation)
    assert not bucket.blob("guarded").exists()


def test_bytes_come_with_their_hash_and_whole_or_in_ranges(server: ObjectServer, bucket: storage.Bucket) -> None:
    data = os.urandom(3 * CHUNK)
    blob = bucket.blob("ranges")
    blob.upload_from_string(data)
    assert blob.download_as_bytes(checksum="crc32c") == data
    assert blob.download_as_bytes(start=10, end=19) == data[10:20]
    target = io.BytesIO()
    bucket.blob("ranges", chunk_size=CHUNK).download_to_file(target)
    assert target.getvalue() == data
    small = bucket.blob("small")
    small.upload_from_string(b"small")
    assert small.download_as_bytes(checksum="md5") == b"small"


# ---- server-side copies


def test_rewrite_in_several_calls_ends_with_the_same_bytes(bucket: storage.Bucket) -> None:
    data = os.urandom(3 << 20)
    source = bucket.blob("source")
    source.upload_from_string(data)
    target, token, calls = bucket.blob("target"), None, 0
    while True:
        query = {"maxBytesRewrittenPerCall": 1 << 20, **({"rewriteToken": token} if token else {})}
        path = f"{source.path}/rewriteTo{target.path}"
        answer = bucket.client._connection.api_request("POST", path, query_params=query, data={})
        calls += 1
        if answer["done"]:
            break
        token = answer["rewriteToken"]
        assert not target.exists()
    assert calls == 3 and target.download_as_bytes() == data
    with pytest.raises(PreconditionFailed):
        target.rewrite(source, if_generation_match=0)
    with pytest.raises(NotFound):
        bucket.blob("other").rewrite(bucket.blob("absent"))


def test_compose_joins_objects_in_order_under_a_condition(bucket: storage.Bucket) -> None:
    parts = [bucket.blob(f"part-{number}") for number in range(3)]
    for number, part in enumerate(parts):
        part.upload_from_string(bytes([65 + number]) * 1000)
    whole = bucket.blob("whole")
    whole.compose(parts, if_generation_match=0)
    assert whole.download_as_bytes() == b"A" * 1000 + b"B" * 1000 + b"C" * 1000
    whole.reload()
    assert whole.component_count == 3
    with pytest.raises(PreconditionFailed):
        whole.compose(parts[:1], if_generation_match=0)
    with pytest.raises(BadRequest):
        bucket.client._connection.api_request("POST", f"{whole.path}/compose", data={"sourceObjects": []})


# ---- batches and listings


def test_batch_answers_each_call_in_order(bucket: storage.Bucket) -> None:
    for name in ("b/1", "b/2"):
        bucket.blob(name).upload_from_string(b"x")
    batch = bucket.client.batch(raise_exception=False)
    with batch:
        for name in ("b/1", "b/absent", "b/2"):
            bucket.blob(name).delete()
    assert [answer.status_code for answer in batch._responses] == [204, 404, 204]
    assert list(bucket.list_blobs(prefix="b/")) == []


def test_listing_goes_by_pages_offsets_and_delimiters(bucket: storage.Bucket) -> None:
    names = [f"l/{letter}/{number}" for letter in "ab" for number in range(3)]
    for name in names:
        bucket.blob(name).upload_from_string(b"x")
    assert [blob.name for blob in bucket.list_blobs(prefix="l/", page_size=2)] == names
    found = bucket.list_blobs(prefix="l/", start_offset="l/a/1", end_offset="l/b/1")
    assert [blob.name for blob in found] == names[1:4]
    grouped = bucket.list_blobs(prefix="l/", delimiter="/")
    assert [blob.name for blob in grouped] == [] and grouped.prefixes == {"l/a/", "l/b/"}


# ---- signing in


def refused(server: ObjectServer, made: Any) -> GoogleAPICallError:
    http = AuthorizedSession(made) if not isinstance(made, AnonymousCredentials) else requests.Session()
    http.trust_env = False
    client = storage.Client("lab-project", made, _http=http, client_options={"api_endpoint": server.endpoint})
    with pytest.raises(GoogleAPICallError) as caught:
        client.get_bucket(BUCKET, retry=None)
    return caught.value


def test_nobody_is_let_in_without_a_token(server: ObjectServer, bucket: storage.Bucket) -> None:
    assert isinstance(refused(server, AnonymousCredentials()), Unauthorized)


def test_forged_token_is_refused(server: ObjectServer, bucket: storage.Bucket) -> None:
    answer = requests.get(
        f"{server.endpoint}/storage/v1/b/{BUCKET}/o",
        headers={"Authorization": "Bearer ya29.lab-eXVuaGUgOTk5OTk5OTk5OTk.AAAA"},
        proxies={"http": ""},
    )
    assert (answer.status_code, answer.json()["error"]["errors"][0]["reason"]) == (401, "authError")


@pytest.mark.parametrize("name", ["goog-mine", "UPPER", "a", "under..score-", "x" * 64])
def test_bucket_name_that_google_refuses_is_refused(name: str, bucket: storage.Bucket) -> None:
    with pytest.raises(BadRequest, match="Invalid bucket name"):
        bucket.client._connection.api_request("POST", "/b", query_params={"project": "p"}, data={"name": name})
