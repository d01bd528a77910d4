"""A pattern of a spec's field, with the words in which flow and form refuse what does not match it."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler as CoreHandler
from pydantic import GetJsonSchemaHandler as JsonHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Rule:
    """A pattern, and what to write where it does not match; for the flow and for the form.

    A JSON schema has no messages of its own: a failed ``pattern`` repeats the input and the pattern,
    but a failed ``const`` is reported as "'<what to write>' was expected".
    """

    pattern: str
    expected: str

    def check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"write {self.expected}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: CoreHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, form: JsonHandler) -> dict[str, Any]:
        description = f"{self.expected[0].upper()}{self.expected[1:]}."
        rule = {"if": {"pattern": self.pattern}, "else": {"const": self.expected}}
        return {"description": description} | form(core) | rule
