"""What must hold of a compose file beyond its schema, as it is emitted and after mutations."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import DIGEST, Doc
from freehold.outgrow.emit.containers import container_engine


def compose_faults(document: Doc, plan: DeployPlan) -> list[str]:
    """Return what is wrong, one sentence each; an empty list where nothing is."""
    try:
        return [*_doors(document), *_services(document), *_endings(document, plan), *_devices(document, plan)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        return [f"a part is missing or has another form: {e!r}"]


def _doors(document: Doc) -> Iterator[str]:
    """Only our server is reached from outside, on loopback; engines reach nothing."""
    if document["networks"]["inside"].get("internal") is not True:
        yield "the engines' network leads out"
    for name, service in document["services"].items():
        if service.get("network_mode") or service.get("privileged"):
            yield f"{name}: it has the host's network or privileges"
        if name == "server":
            yield from (
                f"server: port {p} beyond loopback"
                for p in service["ports"]
                if not p.startswith("127.0.0.1:")
            )
            continue
        if service.get("ports"):
            yield f"{name}: it publishes a port"
        if set(service["networks"]) != {"inside"}:
            yield f"{name}: it is on another network than the inner one"


def _services(document: Doc) -> Iterator[str]:
    for name, service in document["services"].items():
        if not DIGEST.fullmatch(service["image"]):
            yield f"{name}: image {service['image']} has no digest"
        if service.get("restart") != "unless-stopped":
            yield f"{name}: a death with status 0 would not be restarted"
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get(
            "security_opt", ()
        ):
            yield f"{name}: privileges can grow"
        if str(service.get("user", "0")).startswith("0"):
            yield f"{name}: it runs as root"
        inline = [v for v in service.get("environment", {}) if v.endswith(("_KEY", "TOKEN"))]
        yield from (f"{name}: {v} is written out" for v in inline)
        if set(service["command"]) & {"--api-key", "--trust-remote-code", "--admin-api-key"}:
            yield f"{name}: a key or a door on its command line"
        if not all(v.get("read_only") for v in service.get("volumes", ())):
            yield f"{name}: it can write to the host"


def _endings(document: Doc, plan: DeployPlan) -> Iterator[str]:
    engine = container_engine(plan.engine, "compose")
    for name, service in document["services"].items():
        words, flag = service["command"], "--drain" if name == "server" else engine.shutdown
        if (name == "server" or engine.python) and "ready" not in service["healthcheck"]["test"]:
            yield f"{name}: healthy without a token"
        if not flag:
            continue
        drain = float(words[words.index(flag) + 1].rstrip("s")) if flag in words else 0.0
        if not 0 < drain < float(service["stop_grace_period"].rstrip("s")):
            yield f"{name}: killed after {service['stop_grace_period']}, while it drains for {drain:g} s"


def _devices(document: Doc, plan: DeployPlan) -> Iterator[str]:
    engines = {n: s for n, s in document["services"].items() if n != "server"}
    if len(engines) != plan.replicas:
        yield f"{len(engines)} engines; the plan has {plan.replicas} replicas"
    if plan.nodes.rig.device.kind != "gpu":
        return
    taken: list[str] = []
    for name, service in engines.items():
        (held,) = service["deploy"]["resources"]["reservations"]["devices"]
        if len(held["device_ids"]) != plan.sizes.devices:
            yield f"{name}: {len(held['device_ids'])} devices; the plan spreads over {plan.sizes.devices}"
        taken += held["device_ids"]
    if len(set(taken)) != len(taken):
        yield "two engines share a device"
