"""What a server that speaks S3 refuses, in words: the same whether it is read or written."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from ..commits import MARKER
from ..errors import AttnstoreError, DeniedError, NotFoundError, UsageError

_UNACCEPTED = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "RequestTimeTooSkewed",
}  # fmt: skip
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}


def no_profile(url: str, profile: object) -> UsageError:
    """Say that the profile that the environment names is nowhere."""
    return UsageError(
        f"{url}: AWS_PROFILE is a profile of AWS's configuration file; got {profile!r}"
    )


def endpoint(session: Any) -> str | None:
    """Address of the server; None is AWS. As botocore, and s3fs's own variable."""
    for name in ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if found := os.environ.get(name):
            return found
    found = session.get_scoped_config().get("endpoint_url")
    return str(found) if found else None


def region(session: Any) -> str:
    """Region that requests are signed for."""
    return str(session.get_config_variable("region") or "us-east-1")


def of_code(code: str, url: str, session: Any) -> AttnstoreError | None:
    """Say what S3's error code means; None if it is no mistake of the caller's.

    Parameters
    ----------
    code
        As ``NoSuchBucket``.
    url
        Of the store, as messages name it.
    session
        botocore's, for endpoint and region.
    """
    where = endpoint(session) or "AWS"
    if code == "NoSuchBucket":
        return NotFoundError(f"{url}: there is no bucket {urlsplit(url).netloc} at {where}")
    if code in _UNACCEPTED:
        return DeniedError(f"{url}: the credentials are not accepted by {where} ({code})")
    if code in _ELSEWHERE:
        return elsewhere(url, session)
    return None


def elsewhere(url: str, session: Any) -> AttnstoreError:
    """Say that the server sends us to another region."""
    return AttnstoreError(
        f"{url}: the bucket is in another region than {region(session)}; set AWS_REGION"
    )


def unreachable(url: str, session: Any, reason: str) -> AttnstoreError:
    """Say that the server does not answer."""
    return AttnstoreError(
        f"{url}: {endpoint(session) or 'AWS'} cannot be reached ({reason}); look at "
        "AWS_ENDPOINT_URL and at the network"
    )


def no_credentials(url: str, more: str = "") -> DeniedError:
    """Say that nothing says who asks."""
    return DeniedError(
        f"{url}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        f"AWS_PROFILE{more}"
    )


def of_reading(
    error: Exception, url: str, path: str, session: Any, last: bool
) -> AttnstoreError | None:
    """Say why s3fs could not read a file; None if that is no matter of S3's, or if it may pass.

    Parameters
    ----------
    error
        botocore's, or what s3fs made of it.
    path
        Relative to the store.
    last
        Whether it is not asked for again.
    """
    told = error.__cause__ or error
    names = {kind.__name__ for kind in type(told).__mro__}
    answer = getattr(told, "response", None)
    if isinstance(answer, dict) and (
        found := of_code(str(answer.get("Error", {}).get("Code")), url, session)
    ):
        return found
    # Without the marker it is perhaps another server than was meant; what lacks later is damage.
    if isinstance(error, FileNotFoundError) and path == MARKER and (where := endpoint(session)):
        return NotFoundError(f"{url}/{path}: not found at {where}")
    if "ProfileNotFound" in names:
        return no_profile(url, getattr(told, "kwargs", {}).get("profile", ""))
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return no_credentials(url, "; or for a public bucket FSSPEC_S3_ANON=true")
    if str(told).startswith("Invalid endpoint"):
        return UsageError(
            f"{url}: AWS_ENDPOINT_URL begins with http:// or https://; got {endpoint(session)!r}"
        )
    # Without a connection botocore has asked five times already; what broke later may pass.
    if "ConnectionError" in names or (last and names & {"HTTPClientError", "FSTimeoutError"}):
        late = any("Timeout" in name for name in names)
        if "SSLError" in names:
            reason = "it speaks no TLS, or its certificate is not trusted"
        else:
            reason = "no answer in time" if late else "no connection"
        return unreachable(url, session, reason)
    return None
