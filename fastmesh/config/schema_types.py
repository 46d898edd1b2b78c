"""What the schema is made of: how the text of a setting is read, and the base of all sections."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fastmesh.config import values
from fastmesh.config.values import Address

SECOND: Final = 1000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE

Duration = Annotated[int, Meta(extra={"kind": values.DURATION})]
Percent = Annotated[float, Meta(extra={"kind": values.PERCENT})]
Path = Annotated[str, Meta(extra={"kind": values.PATH})]
Location = Annotated[Address, Meta(extra={"kind": values.ADDRESS})]
EndpointLocation = Annotated[Address, Meta(extra={"kind": values.ENDPOINT_ADDRESS})]
ListenerName = Annotated[str, Meta(extra={"kind": values.LISTENER_NAME})]
ServiceName = Annotated[str, Meta(extra={"kind": values.SERVICE_NAME})]
Workload = Annotated[str, Meta(extra={"kind": values.WORKLOAD})]
TrustDomain = Annotated[str, Meta(extra={"kind": values.TRUST_DOMAIN})]
SpiffeId = Annotated[str, Meta(extra={"kind": values.SPIFFE_ID})]
From = Annotated[str, Meta(extra={"kind": values.FROM})]
Method = Annotated[str, Meta(extra={"kind": values.METHOD})]
PathPattern = Annotated[str, Meta(extra={"kind": values.PATH_PATTERN})]
HostPattern = Annotated[str, Meta(extra={"kind": values.HOST_PATTERN})]
HeaderName = Annotated[str, Meta(extra={"kind": values.HEADER_NAME})]
HeaderValue = Annotated[str, Meta(extra={"kind": values.HEADER_VALUE})]
Regex = Annotated[str, Meta(extra={"kind": values.REGEX})]
DnsDomain = Annotated[str, Meta(extra={"kind": values.DNS_DOMAIN})]
ServerName = Annotated[str, Meta(extra={"kind": values.SERVER_NAME})]
Cidr = Annotated[str, Meta(extra={"kind": values.CIDR})]
RequestPath = Annotated[str, Meta(extra={"kind": values.REQUEST_PATH})]
GrpcService = Annotated[str, Meta(extra={"kind": values.GRPC_SERVICE})]
RuleName = Annotated[str, Meta(extra={"kind": values.RULE_NAME})]
PortName = Annotated[str, Meta(extra={"kind": values.PORT})]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the file. The first line of a subclass's docstring names it in messages and pages."""
