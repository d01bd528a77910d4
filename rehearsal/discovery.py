"""Routes and JSON Schemas, generated from the discovery documents google-api-python-client ships.

A ``Method`` is one REST method; ``Api.match`` finds it for a verb and path; ``check_request`` and
``check_response`` validate bodies. Discovery documents use JSON Schema draft 3; ``_modern`` turns a
schema into draft 2020-12. Source: https://developers.google.com/discovery/v1/reference/apis
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from rehearsal.errors import ApiError, Json, invalid, malformed, required

LEGACY_QUERY = {"returnPartialSuccess", "$alt"}
"""Documented nowhere, and sent: the first by gcloud, the second by Google's generated REST clients."""


@dataclass(frozen=True)
class Method:
    """One method: ``id`` as ``compute.instances.insert``; schema names of request and response."""

    id: str
    verb: str
    depth: int
    route: re.Pattern[str]
    path: Mapping[str, Json]
    query: Mapping[str, Json]
    request: str | None
    response: str | None

    @property
    def action(self) -> str:
        return self.id.rpartition(".")[2]

    @property
    def collection(self) -> str:
        """The resource the method belongs to: ``compute.instances``."""
        return self.id.rpartition(".")[0]


class Api:
    """One Google API by discovery name, such as ``compute.v1``."""

    def __init__(self, document: str) -> None:
        source = resources.files("googleapiclient.discovery_cache.documents") / f"{document}.json"
        doc = json.loads(source.read_text())
        self.name: str = doc["name"]
        self.host: str = doc["rootUrl"].split("/")[2]
        self.base: str = "/" + doc["servicePath"]
        self.schemas: Json = doc["schemas"]
        self.methods: dict[str, Method] = {}
        self._routes: dict[tuple[str, int], list[Method]] = defaultdict(list)
        self._common: Json = doc["parameters"]
        defs = {name: _modern(schema) for name, schema in self.schemas.items()}
        self._defs = defs
        self._all = Draft202012Validator({"$defs": defs})
        for method in _methods(doc):
            self.methods[method.id] = method
            self._routes[method.verb, method.depth].append(method)
        for routes in self._routes.values():
            routes.sort(key=lambda method: method.route.groups)  # a literal before a name

    def match(self, verb: str, path: str) -> tuple[Method, dict[str, str]] | None:
        """The method of a request and its path parameters; None when the API has no such route."""
        path = path.removeprefix(self.base)
        for method in self._routes[verb, path.count("/")]:
            if found := method.route.fullmatch(path):
                return method, found.groupdict()
        return None

    def check_request(
        self, method: Method, params: Mapping[str, str], query: Mapping[str, str], body: Json
    ) -> None:
        """Raise the 400 Google would answer when path, query or body do not fit the method."""
        for name, value in params.items():
            pattern = method.path.get(name, {}).get("pattern", "")
            if pattern and not re.fullmatch(pattern.strip("^$"), value):
                raise invalid(name, value, f"Must be a match of regex '{pattern}'")
        for name, value in query.items():
            schema = method.query.get(name) or self._common.get(name)
            if schema is None and name not in LEGACY_QUERY:
                raise malformed(
                    f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query '
                    f"parameter. Field '{name}' could not be found in request message."
                )
            _check_query(name, value, schema or {})
        for name, schema in method.query.items():
            if schema.get("required") and name not in query:
                raise ApiError(400, "required", f"Required field '{name}' not specified")
        if method.request is None:
            if body:
                raise malformed("Invalid JSON payload received. This method takes no body.")
            return
        for error in self._validator(method.request).iter_errors(body):
            raise _explain(error)
        if method.action in ("patch", "update"):
            return  # the service does without what its document says a change requires
        for name, schema in self.schemas[method.request].get("properties", {}).items():
            if method.id in schema.get("annotations", {}).get("required", ()) and name not in body:
                raise required(name)

    def check_response(self, method: Method, body: Json) -> None:
        """Raise ``ValidationError`` when our own answer is not what the API promises."""
        if method.response:
            self._validator(method.response).validate(body)

    def writable(self, schema: str, body: Json) -> Json:
        """``body`` without the members only the service may set."""
        properties = self.schemas[schema].get("properties", {})
        return {k: v for k, v in body.items() if not _output_only(properties.get(k, {}))}

    def _validator(self, schema: str) -> Any:
        return self._all.evolve(schema={"$defs": self._defs, "$ref": f"#/$defs/{schema}"})


def _methods(node: Json) -> Iterator[Method]:
    for raw in node.get("methods", {}).values():
        params: Json = raw.get("parameters", {})
        literal = re.split(r"\{\+?(\w+)\}", raw["flatPath"])
        route = "".join(
            f"(?P<{part}>[^/:]+)" if odd % 2 else re.escape(part)
            for odd, part in enumerate(literal)
        )
        yield Method(
            raw["id"],
            raw["httpMethod"],
            raw["flatPath"].count("/"),
            re.compile(route),
            {k: p for k, p in params.items() if p["location"] == "path"},
            {k: p for k, p in params.items() if p["location"] == "query"},
            raw.get("request", {}).get("$ref"),
            raw.get("response", {}).get("$ref"),
        )
    for child in node.get("resources", {}).values():
        yield from _methods(child)


def _modern(schema: Json) -> Json:
    """A draft 3 discovery schema as draft 2020-12."""
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    new: Json = {}
    kind = schema.get("type")
    if kind == "string" and schema.get("format") in ("int64", "uint64"):
        new = {"type": ["string", "integer"], "pattern": r"^-?[0-9]{1,20}\Z"}
        new |= {"minimum": -(2**63), "maximum": 2**64 - 1}
    elif kind == "integer" and schema.get("format") == "uint32":
        new = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    elif kind == "integer":
        new = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
    elif kind and kind != "any":
        new = {"type": kind}
    if "pattern" in schema:
        new["pattern"] = rf"^(?:{schema['pattern'].strip('^$')})\Z"
    if "enum" in schema:
        new["enum"] = schema["enum"]
    if "items" in schema:
        new["items"] = _modern(schema["items"])
    if "properties" in schema:
        new["properties"] = {name: _modern(value) for name, value in schema["properties"].items()}
        new["additionalProperties"] = False
    elif "additionalProperties" in schema:
        new["additionalProperties"] = _modern(schema["additionalProperties"])
    return new


def _output_only(schema: Json) -> bool:
    """Older schemas say so only in words."""
    words: str = schema.get("description", "")
    return schema.get("readOnly", False) or words.startswith("[Output Only]")


def _check_query(name: str, value: str, schema: Json) -> None:
    fits = value in schema.get("enum", [value])
    match schema.get("type"), schema.get("format"):
        case "string", "int64" | "uint64" as form:
            fits = bool(re.fullmatch("-?[0-9]{1,18}" if form == "int64" else "[0-9]{1,18}", value))
        case "integer", _:
            most = 500 if name == "maxResults" else 2**32 - 1
            fits = bool(re.fullmatch("[0-9]{1,10}", value)) and int(value) <= most
        case "boolean", _:
            fits = value.lower() in ("true", "false")
    if not fits:
        raise ApiError(400, "invalidParameter", f"Invalid value '{value}' for parameter '{name}'.")


def _explain(error: ValidationError) -> ApiError:
    """Google's words for a body that does not fit."""
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
    schema: Any = error.schema
    if error.validator == "additionalProperties":
        body: Any = error.instance
        name = next(key for key in body if key not in schema["properties"])
        at = f" at 'resource{where}'" if where else ""
        return malformed(
            f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
        )
    if error.validator in ("type", "minimum", "maximum"):
        return malformed(f"Invalid value at 'resource{where}' ({schema['type']})")
    pattern = str(error.validator_value).removeprefix("^").removesuffix(r"\Z")
    why = f"Must be a match of regex '{pattern}'"
    if error.validator == "enum":
        why = f"Must be one of {error.validator_value}"
    return invalid(where.lstrip("."), str(error.instance)[:200], why)
