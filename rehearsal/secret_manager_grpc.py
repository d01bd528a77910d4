"""Secret Manager's gRPC form: another spelling of the same requests.

Every RPC is turned into its REST twin by the table ``_RPCS``, asked of the gateway, and the answer
turned back, so that both ways pass the same checks and reach the same code.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.api_core import path_template, rest_helpers
from google.cloud.secretmanager_v1 import types
from google.iam.v1 import iam_policy_pb2
from google.iam.v1.policy_pb2 import Policy
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2, status_pb2  # noqa: F401 - status_pb2 finds details by type
from grpc_status import rpc_status

from rehearsal.errors import Json
from rehearsal.gateway import Gateway

HOST: Final = "secretmanager.googleapis.com"
_transcode: Any = path_template.transcode  # google.api_core has few types
_flatten: Any = rest_helpers.flatten_query_params
_PARENT, _SECRET = "/v1/{parent=projects/*}/secrets", "/v1/{%s=projects/*/secrets/*}"
_VERSION = "/v1/{name=projects/*/secrets/*/versions/*}"
_RPCS: Final[dict[str, tuple[str, str, str, Any]]] = {
    "CreateSecret": ("POST", _PARENT, "secret", types.Secret),
    "ListSecrets": ("GET", _PARENT, "", types.ListSecretsResponse),
    "GetSecret": ("GET", _SECRET % "name", "", types.Secret),
    "UpdateSecret": ("PATCH", _SECRET % "secret.name", "secret", types.Secret),
    "DeleteSecret": ("DELETE", _SECRET % "name", "", Empty),
    "AddSecretVersion": ("POST", _SECRET % "parent" + ":addVersion", "*", types.SecretVersion),
    "ListSecretVersions": (
        "GET", _SECRET % "parent" + "/versions", "", types.ListSecretVersionsResponse,
    ),
    "GetSecretVersion": ("GET", _VERSION, "", types.SecretVersion),
    "AccessSecretVersion": ("GET", _VERSION + ":access", "", types.AccessSecretVersionResponse),
    "EnableSecretVersion": ("POST", _VERSION + ":enable", "*", types.SecretVersion),
    "DisableSecretVersion": ("POST", _VERSION + ":disable", "*", types.SecretVersion),
    "DestroySecretVersion": ("POST", _VERSION + ":destroy", "*", types.SecretVersion),
    "GetIamPolicy": ("GET", _SECRET % "resource" + ":getIamPolicy", "", Policy),
    "SetIamPolicy": ("POST", _SECRET % "resource" + ":setIamPolicy", "*", Policy),
    "TestIamPermissions": (
        "POST", _SECRET % "resource" + ":testIamPermissions", "*",
        iam_policy_pb2.TestIamPermissionsResponse,
    ),
}  # fmt: skip
"""RPC → verb, path template and body (a field, or * for the rest) of its REST twin, response type.
The request type is named for the RPC."""


async def serve_grpc(gateway: Gateway, address: str) -> grpc.aio.Server:
    """Serve the API's gRPC form, without TLS, at an address such as ``unix:/path``."""
    service = "google.cloud.secretmanager.v1.SecretManagerService"
    methods = {rpc: _transcoder(gateway, rpc, *twin) for rpc, twin in _RPCS.items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
    server.add_insecure_port(address)
    await server.start()
    return server


def _transcoder(
    gateway: Gateway, rpc: str, verb: str, uri: str, body: str, response: Any
) -> grpc.RpcMethodHandler:
    home = types if hasattr(types, f"{rpc}Request") else iam_policy_pb2
    request, response = _protobuf(getattr(home, f"{rpc}Request")), _protobuf(response)
    rule = {"method": verb, "uri": uri} | ({"body": body} if body else {})

    async def answer(message: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            twin = _transcode([rule], **json_format.MessageToDict(message))
        except ValueError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, "Invalid resource field value in the request.")  # raises
        query = dict(_flatten(twin["query_params"], strict=True))
        authorization = dict(context.invocation_metadata()).get("authorization", "")
        status, found = await gateway.answer(
            HOST, verb, twin["uri"], query, twin.get("body", {}), authorization
        )
        if status != 200:
            await _abort(context, found["error"])
        return json_format.ParseDict(found, response(), ignore_unknown_fields=True)

    return grpc.unary_unary_rpc_method_handler(
        answer, request.FromString, response.SerializeToString
    )


def _protobuf(message: Any) -> Any:
    """The protobuf class of a message class, which proto-plus may wrap."""
    return message.pb() if hasattr(message, "pb") else message


async def _abort(context: grpc.aio.ServicerContext, error: Json) -> None:
    """End an RPC (this raises) with a REST error; its details go into the trailers, as Google's."""
    code, message = grpc.StatusCode[error["status"]], error["message"]
    fields = {"code": code.value[0], "message": message, "details": error.get("details", [])}
    status = json_format.ParseDict(fields, status_pb2.Status())
    await context.abort(code, message, rpc_status.to_status(status).trailing_metadata)
