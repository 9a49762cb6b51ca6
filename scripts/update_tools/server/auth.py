# SPDX-License-Identifier: Apache-2.0
"""Who a device is: its signed authorization request, its keys, its token (spec device-api.md section 2)."""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from update_tools.server import audit, records
from update_tools.server.bodies import parse_json
from update_tools.server.database import DEVICES_LOCK, alone, locked
from update_tools.server.db import Device, DeviceKey, Part, new_id, now
from update_tools.server.faults import BadRequest, Conflict, NotFound, Refusal, Unauthorized
from update_tools.server.tokens import Signer

TOKEN_LIFETIME_S = 7 * 24 * 3600
MAX_WAITING = 10_000  # devices nobody decided about; anyone who reaches the server can add one
STATUSES = ("accepted", "preauthorized", "pending", "rejected")  # the best first
RSA_BITS = (2048, 8192)  # below is weak, above costs an unknown caller our time

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class AuthRequest:
    """An authorization request whose signature was right."""

    identity: str
    public_key: str
    kind: str
    tier: str


def read_request(body: bytes, signature: str) -> AuthRequest:
    """Check a request against its own key. Raises BadRequest, or Unauthorized on a wrong signature."""
    fields = parse_json(body)
    if not isinstance(fields, dict):
        raise BadRequest("an authorization request is a JSON object")
    identity = fields.get("id_data")
    pem = fields.get("pubkey")
    if not isinstance(identity, str) or not isinstance(pem, str):
        raise BadRequest("id_data and pubkey must be strings")
    tier = fields.get("tier", "")
    if not isinstance(tier, str) or len(tier) > 32:
        raise BadRequest("tier must be a short string")
    key, kind = _load_key(pem)
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unauthorized("X-MEN-Signature is not base64") from error
    if not raw:
        raise Unauthorized("X-MEN-Signature is missing")
    try:
        _verify(key, raw, body)
    except InvalidSignature:
        raise Unauthorized("the signature does not match the public key") from None
    return AuthRequest(_normal_identity(identity), _pem(key), kind, tier)


def authorize(session: Session, request: AuthRequest, *, auto_accept: bool) -> DeviceKey:
    """Record the device and its key and return the key, whatever its status is.

    With `auto_accept` a new key takes the place of the old one, as a bench board with a fresh data partition
    needs it; a key that a person rejected stays rejected. A request that comes again changes nothing.
    """
    device = _device_for(session, request.identity, auto_accept=auto_accept)
    if device.tier != request.tier:
        device.tier = request.tier
    device.last_seen_at = now()
    key = next((known for known in device.keys if known.public_key == request.public_key), None)
    if key is None:
        # Only the newest undecided key of a device is of interest; so nobody can pile them up.
        for old in [known for known in device.keys if known.status == "pending"]:
            device.keys.remove(old)
        key = DeviceKey(id=new_id(), public_key=request.public_key, kind=request.kind, status="pending")
        device.keys.append(key)
    if key.status == "preauthorized" or (auto_accept and key.status == "pending"):
        _accept(key)
    _set_status(device)
    session.flush()
    return key


def _device_for(session: Session, identity: str, *, auto_accept: bool) -> Device:
    """The identity's device, locked; a new one if there is none."""
    query = select(Device).where(Device.identity == identity).with_for_update(key_share=True)
    device = session.scalar(query)
    if device is not None:
        return device
    alone(session, DEVICES_LOCK)  # two processes that hear of it at the same moment
    device = session.scalar(query)
    if device is not None:
        return device
    waiting = session.scalar(select(func.count()).select_from(DeviceKey).where(DeviceKey.status == "pending"))
    if not auto_accept and (waiting or 0) >= MAX_WAITING:
        raise Refusal(f"{waiting} devices already wait for a decision", status=429)
    device = Device(id=new_id(), identity=identity)
    session.add(device)
    session.flush()
    return device


# --- decisions of people ---------------------------------------------------------------------------------


def get_device(session: Session, device_id: str) -> Device:
    """A device by id. Raises NotFound."""
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound("there is no such device")
    return device


def get_key(session: Session, device_id: str, key_id: str) -> DeviceKey:
    """A device's key. Raises NotFound."""
    key = session.get(DeviceKey, key_id)
    if key is None or key.device_id != device_id:
        raise NotFound("the device has no such key")
    return key


def decide(session: Session, key_id: str, status: str) -> DeviceKey:
    """Accept or reject a key. A token issued for a key that is no longer accepted is refused from now on."""
    key = session.get(DeviceKey, key_id)
    if key is None:
        raise NotFound("no such device key")
    device = locked(session, Device, key.device_id)
    assert device is not None
    session.refresh(key)
    if status == "accepted":
        _accept(key)
    elif status == "rejected":
        key.status = "rejected"
    else:
        raise Conflict(f"a key can be accepted or rejected, not {status!r}", status=400)
    _set_status(device)
    audit.record(session, status, "device", device.id, device.identity)
    return key


def preauthorize(session: Session, identity: Any, pem: str) -> Device:
    """Accept a device before it comes. Raises BadRequest, or Conflict if it is known already."""
    key, kind = _load_key(pem)
    normal = _normal_identity(json.dumps(identity))
    device = _device_for(session, normal, auto_accept=True)
    if device.keys:
        raise Conflict("the device is known already", hint="accept its key instead")
    device.keys.append(DeviceKey(id=new_id(), public_key=_pem(key), kind=kind, status="preauthorized"))
    _set_status(device)
    audit.record(session, "preauthorized", "device", device.id, normal)
    return device


def decommission(session: Session, device_id: str) -> None:
    """Forget a device's keys and end its part in deployments; its history stays. Raises NotFound."""
    device = locked(session, Device, device_id)
    if device is None or device.status == "decommissioned":
        raise NotFound("there is no such device")
    open_parts = select(Part.deployment_id).where(Part.device_id == device_id, Part.finished_at.is_(None))
    for deployment_id in sorted(session.scalars(open_parts)):
        deployment = records.lock_deployment(session, deployment_id)
        for part in records.lock_parts(session, deployment_id, [device_id]):
            records.set_status(session, part, "decommissioned", part.substate, source=records.OPERATOR)
        records.finish_if_done(session, deployment)
    device.keys.clear()
    device.status = "decommissioned"
    audit.record(session, "decommissioned", "device", device.id, device.identity)


def forget_key(session: Session, device_id: str, key_id: str) -> None:
    """Forget one key; the last one takes the device with it. Raises NotFound."""
    device = locked(session, Device, device_id)
    key = get_key(session, device_id, key_id)
    assert device is not None
    if len(device.keys) == 1:
        decommission(session, device_id)
        return
    device.keys.remove(key)
    _set_status(device)
    audit.record(session, "key forgotten", "device", device.id, device.identity)


# --- tokens ----------------------------------------------------------------------------------------------


def issue_token(signer: Signer, key: DeviceKey) -> str:
    """The token for an accepted key."""
    issued = int(time.time())
    return signer.issue(
        {
            "jti": new_id(),
            "sub": key.device_id,
            "key": key.id,
            "iat": issued,
            "exp": issued + TOKEN_LIFETIME_S,
            "mender.device": True,
        }
    )


def check_token(signer: Signer, authorization: str) -> dict[str, Any]:
    """The claims in an Authorization header, before the body is worth reading. Raises Unauthorized."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("this request needs a device token")
    return signer.open(token.strip(), now_s=time.time())


def identify(session: Session, signer: Signer, authorization: str, *, for_update: bool = False) -> Device:
    """The device a request's Authorization header belongs to. Raises Unauthorized.

    `for_update`: nobody else changes the device until this transaction ends.
    """
    claims = check_token(signer, authorization)
    if for_update:
        locked(session, Device, str(claims.get("sub", "")))
    key = session.get(DeviceKey, str(claims.get("key", "")), options=[joinedload(DeviceKey.device)])
    if key is None or key.device_id != claims.get("sub") or key.status != "accepted":
        raise Unauthorized("the device is not accepted any more")
    return key.device


def _accept(key: DeviceKey) -> None:
    for other in key.device.keys:
        if other.status == "accepted":
            other.status = "pending"  # not rejected: a bench board comes back with it after a reset
    key.status = "accepted"


def _set_status(device: Device) -> None:
    """The best word any of its keys has."""
    words = {key.status for key in device.keys}
    device.status = next((word for word in STATUSES if word in words), "pending")


def _normal_identity(text: str) -> str:
    """The identity with sorted keys, so that the order on the wire makes no second device."""
    try:
        value = parse_json(text.encode())
    except BadRequest as error:
        raise BadRequest(f"id_data: {error.message}") from error
    if not isinstance(value, dict) or not value:
        raise BadRequest("id_data must hold a JSON object with at least one entry")
    for name, entry in value.items():
        texts = entry if isinstance(entry, list) else [entry]
        if not name or not all(isinstance(item, str) for item in texts):
            raise BadRequest(f"identity entry {name!r} must be a string or a list of strings")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _pem(key: PublicKey) -> str:
    """The key in one form, however it was written."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def _load_key(pem: str) -> tuple[PublicKey, str]:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest("pubkey is not a PEM public key") from error
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
            raise BadRequest(
                f"RSA keys have {RSA_BITS[0]} to {RSA_BITS[1]} bits here, this one {key.key_size}"
            )
        return key, f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise BadRequest(f"the curve must be P-256, not {key.curve.name}")
        return key, "ECDSA P-256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key, "Ed25519"
    raise BadRequest("pubkey must be an RSA, ECDSA P-256 or Ed25519 key")


def _verify(key: PublicKey, signature: bytes, body: bytes) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, body, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, body, ec.ECDSA(hashes.SHA256()))
    else:
        key.verify(signature, body)
