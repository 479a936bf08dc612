from __future__ import annotations

import inspect
import re

import pytest

from parakeet_api import errors
from parakeet_api.errors import ApiError, CheckpointError, SettingsError, UploadTooLargeError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, ApiError)
}
DRAWN = re.findall(r"^([ │]*)[├└]── (\w+) +(\d{3})", errors.__doc__ or "", re.MULTILINE)
"""Indentation, name and status of each branch of the tree in the module's docstring."""


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    above = {4: "ApiError"}
    drawn = {}
    for indent, name, _ in DRAWN:
        drawn[name] = above[len(indent)]
        above[len(indent) + 4] = name

    assert drawn == {
        name: value.__base__.__name__
        for name, value in CLASSES.items()
        if value is not ApiError and value.__base__ is not None
    }


@pytest.mark.parametrize(("name", "status"), [(name, int(status)) for _, name, status in DRAWN])
def test_every_error_has_the_status_in_the_docstring(name: str, status: int) -> None:
    assert CLASSES[name].status == status


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_error_has_openais_shape(kind: type[ApiError]) -> None:
    error = kind("No good.", param="file")

    assert str(error) == error.message == "No good."
    assert error.body() == {
        "error": {"message": "No good.", "type": kind.type, "param": "file", "code": kind.code}
    }


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_client_errors_are_never_server_errors(kind: type[ApiError]) -> None:
    # OpenAI's type of a 429 is the limited quantity.
    client_type = {429: "requests"}.get(kind.status, "invalid_request_error")
    assert kind.type == (client_type if kind.status < 500 else "server_error")


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_retryable_errors_state_the_delay(kind: type[ApiError]) -> None:
    comes_later = kind.status in (429, 503) or kind is errors.JobNotFinishedError
    assert (kind.retry_after_s is not None) == comes_later


def test_codes_tell_errors_apart() -> None:
    codes = [kind.code for kind in CLASSES.values() if kind.code is not None]

    assert len(codes) == len(set(codes)) >= 14


@pytest.mark.parametrize(
    "kind",
    [k for k in CLASSES.values() if issubclass(k, (errors.AudioDecodeError, UploadTooLargeError))],
)
def test_errors_about_the_upload_name_its_field(kind: type[ApiError]) -> None:
    assert kind("No good.").param == "file"
    assert kind("No good.", param=None).param is None


def test_other_errors_name_no_field() -> None:
    assert errors.InvalidRequestError("No good.").body()["error"]["param"] is None


@pytest.mark.parametrize("sent", [None, 300])
def test_an_upload_that_is_too_large_gets_the_limit(sent: int | None) -> None:
    error = UploadTooLargeError.above(200, sent=sent)

    assert "(200) exceeded" in error.message
    assert ("(300 bytes sent)" in error.message) == (sent is not None)
    assert error.param == "file"


def test_errors_at_the_start_are_no_api_errors() -> None:
    assert not issubclass(SettingsError, ApiError)
    assert not issubclass(CheckpointError, ApiError)
