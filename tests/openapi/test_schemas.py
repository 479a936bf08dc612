from __future__ import annotations

from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import jsonschema_rs
import pytest

from parakeet_api.errors import AudioDecodeError, InvalidRequestError, ServerError
from parakeet_api.model.checkpoints import StoreState
from parakeet_api.model.slot import LoadState
from parakeet_api.openapi.schemas import BODIES, body_schemas, error_details


def schema(name: str, *fields: str) -> dict[str, Any]:
    """Return the schema of a body, or of a field in it."""
    found: dict[str, Any] = body_schemas()[name]
    for field in fields:
        found = found["properties"][field]
    return found


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_body_has_the_fields_of_its_type(name: str) -> None:
    fields = get_type_hints(BODIES[name], include_extras=True)
    optional = {field for field, kind in fields.items() if get_origin(kind) is NotRequired}

    assert schema(name)["properties"].keys() == fields.keys()
    assert set(schema(name)["required"]) == fields.keys() - optional


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_field_is_described_or_self_explanatory(name: str) -> None:
    silent = {
        field
        for field, described in schema(name)["properties"].items()
        if not described.keys() & {"description", "const", "$ref", "anyOf"}
    }

    assert silent == set()


def test_a_description_is_one_line_without_a_title() -> None:
    result = schema("Job", "result")

    assert result["description"].endswith("else text. Lists leave it out.")
    assert "title" not in result
    assert "title" in schema("SoundTrack")["properties"]


def test_an_inherited_field_has_its_description() -> None:
    assert schema("AsrSegment", "seek") == schema("Segment", "seek")
    assert schema("TextDone", "logprobs") == schema("Transcription", "logprobs")
    assert "description" in schema("AsrSegment", "seek")


def test_a_type_without_a_name_is_inlined() -> None:
    assert schema("Health", "queue")["properties"]["waiting_chunks"]["minimum"] == 0
    assert schema("Health", "model") == {"$ref": "#/components/schemas/ModelStatus"}


def test_nullable_types_are_written_in_the_short_form() -> None:
    assert schema("Progress", "queue_position")["type"] == ["integer", "null"]
    assert schema("Health", "device_memory")["type"] == ["object", "null"]
    assert schema("Job", "webhook")["anyOf"] == [
        {"$ref": "#/components/schemas/Webhook"},
        {"type": "null"},
    ]


def test_a_models_states_are_those_of_its_file_and_of_its_loading() -> None:
    states = {*get_args(StoreState), *get_args(LoadState)}

    assert set(schema("ModelStatus", "state")["enum"]) == states


def test_schemas_are_valid() -> None:
    for published in body_schemas().values():
        jsonschema_rs.meta.validate(published)


def test_details_of_errors_have_only_their_types_and_codes() -> None:
    coded = error_details([AudioDecodeError, ServerError])["properties"]
    mixed = error_details([AudioDecodeError, InvalidRequestError])["properties"]
    without = error_details([InvalidRequestError])["properties"]

    assert coded["code"]["enum"] == ["internal_error", "invalid_audio"]
    assert coded["type"]["enum"] == ["invalid_request_error", "server_error"]
    assert mixed["code"]["type"] == ["string", "null"]
    assert mixed["code"]["enum"] == ["invalid_audio", None]
    assert without["code"] == {"type": "null"}
