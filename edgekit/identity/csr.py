"""Certificate requests: a device proves that it holds its key; everything else it may ask for is ignored."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.identity.device_id import device_id
from edgekit.identity.errors import IdentityError

MAX_CSR = 4096
"""Characters. A P-256 request takes about 500."""


def make_csr(key: ec.EllipticCurvePrivateKey) -> str:
    """A PEM request signed by `key`, with the device id as its common name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id(key.public_key()))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def read_csr(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose signature is right. Raises IdentityError."""
    if len(csr_pem) > MAX_CSR:
        raise IdentityError(f"the certificate request has {len(csr_pem)} characters; {MAX_CSR} are allowed")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        public = request.public_key()
    except Exception as error:  # the parser has several error types; every one means the same here
        raise IdentityError(f"the certificate request cannot be read ({error})") from error
    if not valid:
        raise IdentityError("the certificate request is not signed by the key that it carries")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise IdentityError("the certificate request carries another kind of key; ECDSA P-256 is needed")
    return public
