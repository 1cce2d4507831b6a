"""The user's own tools: a description and a JSON schema in `tools/NAME.yaml` of the workspace, and an address to ask.

Only hosts in `tools/hosts.txt` are asked, one `host` or `host:port` a line. That file is written by hand, on the disk
of the machine, never from a page: whoever can only use the page cannot have this machine ask any other.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
import yaml
from pydantic import Field, ValidationError, field_validator

from studio.durable import write_atomic
from studio.schema import ConfigError, FieldError, Section, errors_by_field
from studio.tools.built_in import built_in
from studio.tools.tool import Tool, ToolError
from studio.tools.web import ask
from studio.workspace import Workspace
from studio.yaml_text import YamlFault, read_text, read_yaml

HOSTS = "hosts.txt"
KEY_PREFIX = "CRUCIBLE_TOOL_"
MOST = 32
"""Tools of a workspace that are read."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class OwnTool(Section):
    """One file of the folder `tools`."""

    name: str
    """What the model calls it."""
    description: Annotated[str, Field(min_length=1, max_length=2000)]
    """What it does, for the model to read."""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    """JSON schema of the arguments: an object with properties."""
    url: Annotated[str, Field(max_length=2000)]
    """Where it is asked."""
    method: Literal["GET", "POST"] = "POST"
    """POST: the arguments as a JSON object. GET: as the query of the address."""
    timeout: Annotated[float, Field(ge=1, le=120)] = 15.0
    """Seconds an answer may take."""
    key_env: Annotated[str | None, Field(pattern=rf"^{KEY_PREFIX}[A-Z0-9_]+$")] = None
    """Variable of the environment with the key that is sent as bearer token; its name begins with CRUCIBLE_TOOL_."""

    @field_validator("name")
    @classmethod
    def check_name(cls, value: str) -> str:
        """A word that models, files and protocols accept."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", value):
            raise ValueError("write at most 64 letters, digits, _ and -, beginning with a letter")
        return value

    @field_validator("url")
    @classmethod
    def check_url(cls, value: str) -> str:
        """An http address without a name and password in it."""
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or "@" in parts.netloc:
            raise ValueError("write it as http://host:port/path or https://host/path, without a password in it")
        return value

    @field_validator("parameters")
    @classmethod
    def check_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        """An object with named properties."""
        properties, required = value.get("properties", {}), value.get("required", [])
        if value.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
            raise ValueError("write a JSON schema of type object, with properties")
        if not all(isinstance(one, dict) for one in properties.values()) or not set(required) <= set(properties):
            raise ValueError("every property is an object, and what is required is one of them")
        return value


def folder_of(workspace: Workspace) -> Path:
    """Where the files are."""
    return workspace.path / "tools"


def own_tools(workspace: Workspace) -> list[Tool]:
    """The tools of a workspace; one whose file cannot be used is listed as off, with the reason."""
    folder = folder_of(workspace)
    hosts = allowed_hosts(workspace)
    return [_listed(path, hosts) for path in sorted(folder.glob("*.yaml"))[:MOST]] if folder.is_dir() else []


def allowed_hosts(workspace: Workspace) -> frozenset[str]:
    """The lines of hosts.txt, in small letters; none when there is no such file."""
    try:
        lines = read_text(folder_of(workspace) / HOSTS).splitlines()
    except YamlFault:
        return frozenset()
    return frozenset(line.strip().lower() for line in lines if line.strip() and not line.strip().startswith("#"))


def add_own(workspace: Workspace, text: str) -> OwnTool:
    """Save a tool, given as YAML or JSON. Raises ConfigError; OSError when it cannot be written."""
    given = read_own(text)
    if given.name in built_in():  # it would be there and never be used
        taken = f"{given.name} is the name of a built-in tool; give yours another name"
        raise ConfigError([FieldError("name", taken)])
    folder = folder_of(workspace)
    refusal = _refusal(given, allowed_hosts(workspace))
    if refusal:
        raise ConfigError([FieldError("url", refusal)])
    folder.mkdir(exist_ok=True)
    write_atomic(folder / f"{given.name}.yaml", yaml.safe_dump(given.model_dump(), allow_unicode=True, sort_keys=False))
    return given


def remove_own(workspace: Workspace, name: str) -> bool:
    """Delete a tool by name; False when there is none."""
    found = [path for path in folder_of(workspace).glob("*.yaml") if path.stem == name]
    for path in found:
        path.unlink()
    return bool(found)


def read_own(text: str) -> OwnTool:
    """A tool from YAML or JSON; one in OpenAI's form with an address beside it counts too. Raises ConfigError."""
    try:
        given = read_yaml(text)
    except YamlFault as error:
        raise ConfigError([FieldError("tool", str(error))]) from None
    if not isinstance(given, dict):
        raise ConfigError([FieldError("tool", "write name, description, parameters and url")])
    inner = given.get("function")
    if isinstance(inner, dict):
        given = {key: value for key, value in given.items() if key not in ("type", "function")} | inner
    try:
        return OwnTool.model_validate(given)
    except ValidationError as error:
        raise ConfigError(errors_by_field(error)) from None


def _listed(path: Path, hosts: frozenset[str]) -> Tool:
    try:
        found = read_own(read_text(path))
    except (ConfigError, YamlFault) as error:
        return Tool(path.stem, "", {}, lambda _: "", f"{path.name}: {str(error)[:300]}", own=True)
    return Tool(
        found.name, found.description, found.parameters, lambda given: _asked(found, given, hosts),
        _refusal(found, hosts), own=True,
    )  # fmt: skip


def _refusal(tool: OwnTool, hosts: frozenset[str]) -> str | None:
    """Why a tool may not be used, before its host is looked up."""
    parts = urlsplit(tool.url)
    host, port = str(parts.hostname), parts.port
    host = f"[{host}]" if ":" in host else host
    usual = port in (None, 443 if parts.scheme == "https" else 80)
    line = host if usual else f"{host}:{port}"
    if not {line, f"{host}:{port}"} & hosts:
        return f"{tool.name}: the host {line} is not allowed; write it as a line into tools/{HOSTS} of the workspace"
    if tool.key_env and not os.environ.get(tool.key_env):
        return f"{tool.name}: it needs a key in the variable {tool.key_env}"
    return None


def _asked(tool: OwnTool, arguments: dict[str, Any], hosts: frozenset[str]) -> str:
    """The address is looked up once, judged, and that very one is connected to: a name cannot change in between."""
    url = httpx.URL(tool.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    address = _address(tool.name, url.host, port, hosts)
    headers = {"host": url.netloc.decode("ascii")}
    if tool.key_env:
        headers["authorization"] = f"Bearer {os.environ.get(tool.key_env, '')}"
    request: dict[str, Any] = {"headers": headers, "extensions": {"sni_hostname": url.host}}
    if tool.method == "GET":
        plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
        url = url.copy_merge_params(plain)
    else:
        request["json"] = arguments
    with httpx.Client(trust_env=False) as client:
        return ask(client, tool.name, tool.timeout, tool.method, url.copy_with(host=address), **request)


def _address(tool: str, host: str, port: int, hosts: frozenset[str]) -> str:
    """An address of the host that may be connected to. Raises ToolError.

    A private one only when it was named as such: the host is listed by its address, or is localhost.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"{tool}: the host {host} is not found") from None
    listed = {_host(line) for line in hosts}
    for entry in found:
        address = str(entry[4][0])
        if _public(address) or address in listed or (host == "localhost" and ipaddress.ip_address(address).is_loopback):
            return address
    raise ToolError(
        f"{tool}: the host {host} has a private address, which is asked only if tools/{HOSTS} names the address itself"
    )


def _host(line: str) -> str | None:
    try:
        return urlsplit(f"//{line}").hostname
    except ValueError:
        return None


def _public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None)
    if inner is None and address.version == 6 and address in _NAT64:
        inner = ipaddress.ip_address(int(address) & 0xFFFFFFFF)
    address = inner or address
    return address.is_global and not address.is_multicast
