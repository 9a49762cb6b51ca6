# SPDX-License-Identifier: Apache-2.0
"""TLS settings of the device, and what TLS says when it fails. Only imported for an https connection."""

from __future__ import annotations

import ssl
import time

from update_agent.errors import ServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.config import Config

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_…
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}


def context_for(config: Config) -> ssl.SSLContext:
    """System trust store plus ServerCertificate, SkipVerify, client certificate. Raises ServerError."""
    context = ssl.create_default_context()
    # As the reference does: a trusted certificate need not be self-signed, and old private CAs lack
    # extensions that Python 3.13 asks for by default.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if config.server_certificate:
        try:
            context.load_verify_locations(cafile=config.server_certificate)
        except (OSError, ssl.SSLError) as error:
            raise ServerError(
                f"cannot use ServerCertificate {config.server_certificate}: {error.strerror or error}",
                hint="it must be a file with PEM certificates",
            ) from error
    if config.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.https_client_certificate:
        _load_client_certificate(context, config)
    return context


def _load_client_certificate(context: ssl.SSLContext, config: Config) -> None:
    certificate, key = config.https_client_certificate, config.https_client_key
    if config.https_client_engine or key.startswith("pkcs11:"):
        raise ServerError(
            "HttpsClient.Key in a hardware module is not supported for TLS",
            hint="name a PEM file; Security.AuthPrivateKey may stay in the module",
        )

    def passphrase() -> str:
        if not config.key_passphrase:
            raise ServerError(f"HttpsClient.Key {key} is encrypted", hint="give its --passphrase-file")
        return config.key_passphrase

    try:
        context.load_cert_chain(certificate, key or None, password=passphrase)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"cannot use HttpsClient.Certificate {certificate} with HttpsClient.Key {key}: "
            f"{error.strerror or error}",
            hint="both must be PEM files that belong together",
        ) from error


def is_about_time(error: Exception) -> bool:
    """Whether a certificate is refused because of the time it is valid in."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in {_NOT_YET_VALID, _EXPIRED}


def explain(error: Exception) -> tuple[str, str] | None:
    """What happened and what to try, in words; None if it is no error of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"the server's certificate is refused: {error.verify_message}"
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        code = error.verify_code
        if code == _NOT_YET_VALID:
            return reason, f"this device's clock says {now}: is it set yet?"
        if code == _EXPIRED:
            return reason, f"or this device's clock is wrong: it says {now}"
        if code in _OTHER_NAME:
            return reason, "the server's address in mender.conf must be one the certificate names"
        if code in _UNKNOWN_ISSUER:
            return reason, "ServerCertificate in mender.conf must name the certificate of the issuer"
        return reason, ""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}", ""
    return None
